"""The command line: one small module a command. Parse, call the library, print."""
