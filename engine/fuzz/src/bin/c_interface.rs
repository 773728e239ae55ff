#![cfg_attr(vfio_fast_fuzzing, no_main)]

vfio_fast_fuzz::target!(vfio_fast_fuzz::c_interface::run);
