//! The maps against simple models of them.

mod pending;
