"""The built-in parts, one idea a file. They import public names only and come in by the same hooks as a stranger's."""
