//! The seeded driver for tests.
