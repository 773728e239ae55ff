//! Gives the shared library its SONAME: before 1.0 the exact version, so no program runs against a library whose
//! ABI it was not compiled for. The number is Cargo's, like the one in the header and in vfio_fast.pc.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets CARGO_PKG_VERSION for build scripts");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libvfio_fast.so.{version}");
}
