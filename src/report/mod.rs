//! What people see, made from records and Criterion's baselines: tables and comparisons. Nothing here measures.

pub mod compare;
mod statistics;
pub mod table;
