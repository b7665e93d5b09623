//! The NBD frontend.
