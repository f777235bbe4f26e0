"""The machine: its files, its network, its devices, its screen. Nothing here knows of models.

The files, each of which imports only from those above it::

    terminal    tables, bars and maps in characters
    files       writing a file or a folder so that it is whole or not there; reading one that may be something else
    downloads   one verified file from a URL or the package index
    device      which device and number format, and why
    figures     an empty picture, and a picture's way to a file
"""
