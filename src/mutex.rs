//! Locking a `std` mutex whose last holder may have panicked.
//!
//! A panic becomes an error of the operation that it happened in (`host::tasks`). The pod goes on: one
//! bug must not make all its containers unreachable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, poisoned or not.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
