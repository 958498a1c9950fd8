//! Locking a `std` mutex whose last holder may have panicked.
//!
//! A panic ends the pod (`shim::serve`). Its end needs the state all the same: its containers' ends are told, and
//! what was made for them is removed.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`, poisoned or not.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
