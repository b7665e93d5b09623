//! The maps against simple models of them.

mod builder;
mod caches;
mod damage;
mod fill;
mod hostile;
mod pending;
mod ram;
mod runs;
mod world;
