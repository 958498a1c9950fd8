//! One output stream, from ReadStdout/ReadStderr to its sink.
