//! Running a piece of work inside another network namespace.
