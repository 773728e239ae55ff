//! libvfio_fast_preload: faults memory in ahead of the map calls of a program that knows nothing of it.
//!
//! The program is started with this library in LD_PRELOAD (`vfio-fast-run`). Its ioctl() is then the one of this
//! library, which passes each call on as it is: no argument and no answer is changed, and no call is added, left out or
//! split. Before a map call it makes the memory present on all CPUs. Everything else is counted and timed.
//!
//! | module | duty |
//! |---|---|
//! | `c` | the boundary to the program and to the C library; all unsafe code is here |
//! | `call` | what is done before and after a call of the program |
//! | `request` | the four calls and their arguments |
//! | `aside` | the reasons for passing a call on without more |
//! | `counters`, `summary` | what happened, and its text |

mod aside;
mod c;
mod call;
mod counters;
mod request;
mod summary;
