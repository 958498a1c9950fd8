//! The life of one process (init or exec).
