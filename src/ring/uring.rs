//! The real driver, on io_uring.
