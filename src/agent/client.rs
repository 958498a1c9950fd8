//! The one place that knows that a call can hang: deadline, VM gone, error codes.
