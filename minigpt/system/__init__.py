"""The machine: its files, its network, its devices, its screen. Nothing here knows about models.

The files, each of which imports only from those above it::

    signals     Ctrl-C and `kill`, which do not end an import half-way
    terminal    tables, bars and maps in characters
    notebook    tables, bars, maps and curves as HTML that a notebook shows
    files       writing a file or a folder completely or not at all; reading files that may not be what they seem
    downloads   one verified file from a URL or the package index
    device      the choice of device and number format, with the reason
    compiler    a C file as a library, by the machine's own compiler
    figures     new pictures, their texts, and writing them to a file
"""

WIDTH = 80  # columns of a terminal; it stands here because the terminal's own file needs numpy
