//! The simulated disk and the seeded executor.
