//! Pixels and samples ↔ files.
