"""Pure rules: which rows and which tokens make a pair. Table or values in, table or values out."""
