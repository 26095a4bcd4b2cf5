//! What people see: tables, plots, comparisons and the live view, made from records. Nothing here measures.

pub mod table;
