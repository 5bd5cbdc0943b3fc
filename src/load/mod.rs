//! The `load` layer.
