//! The maps against simple models of them.

mod builder;
mod caches;
mod damage;
mod fill;
mod hostile;
mod neighbours;
mod pending;
mod ram;
mod runs;
mod world;
