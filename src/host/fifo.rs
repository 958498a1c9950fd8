//! Opening the client's fifos without ever blocking the executor.
