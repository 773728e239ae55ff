//! Tests that are compiled for one of the compiler's sanitizers.

use std::process::Command;

use vfio_fast_assets::image::TARGET;
use vfio_fast_assets::paths;

/// Runs tests of a package, compiled for a sanitizer and with further flags of the compiler.
pub fn tests(package: &str, sanitizer: &str, flags: &[&str]) -> Command {
    let sanitize = format!("-Zsanitizer={sanitizer}");
    let flags = [&[sanitize.as_str()], flags].concat();
    let mut command = Command::new(paths::cargo());
    command
        .current_dir(paths::root())
        .args(["test", "--locked", "--package", package, "--target", TARGET, "--target-dir"])
        .arg(paths::target().join(format!("sanitizer-{sanitizer}")))
        .env("CARGO_TERM_COLOR", "never")
        // Unoptimized code has the same faults, but runs several times as long.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .args(["--config", "profile.dev.package.\"*\".opt-level=0"])
        .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
        // Sanitizers are not a stable option yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    command
}
