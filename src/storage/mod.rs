//! Journal files, runs and stores.
