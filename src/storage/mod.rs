//! Journal files, runs and stores.

pub mod disk;
pub mod journal;
