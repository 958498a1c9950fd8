//! Files that are ours: opened beneath our directories, written atomically.
