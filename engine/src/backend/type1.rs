//! The kernel's type1 driver.
