//! Load and measurement.
