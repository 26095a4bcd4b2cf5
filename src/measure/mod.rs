//! How it is measured: clocks, memory and power counters, what the machine allows and what it is, and how quiet it was.
//! Nothing here knows models or scenarios.
