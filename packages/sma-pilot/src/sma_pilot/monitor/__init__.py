"""After a go: what came since is replayed, held against the verdict, and kept look by look."""
