"""How rows lie in a file, a module for each layout. `tasks.formats` says which endings they belong to."""
