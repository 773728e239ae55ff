//! Runs C and C++ programs with the installed library, each once plain and once with the address and
//! undefined-behaviour sanitizers. If a compiler or pkg-config is missing, the tests fail; they are not skipped.

mod toolchain;

use std::collections::BTreeSet;
use std::process::Command;

use toolchain::{Build, Language, compile, installed, must, root, run};

/// Builds and runs one program both ways. It must print nothing and exit with 0.
fn passes(source: &str, language: Language) {
    for build in [Build::Plain, Build::Sanitized] {
        let program = compile(&format!("tests/c/{source}"), language, build, &[]);
        let symbols = must(Command::new("nm").arg(&program), "install binutils");
        for marker in ["__asan_init", "__ubsan_handle"] {
            assert_eq!(
                symbols.contains(marker),
                build == Build::Sanitized,
                "{}: whether {marker} is linked",
                program.display()
            );
        }
        assert_eq!(run(&program), "", "{}", program.display());
    }
}

#[test]
fn smoke() {
    passes("smoke.c", Language::C11);
}

#[test]
fn every_pointer_null() {
    passes("nulls.c", Language::C11);
}

#[test]
fn every_struct_size() {
    passes("sizes.c", Language::C11);
}

#[test]
fn transactions_are_checked_and_replaced_memory_is_mapped_again() {
    passes("check.c", Language::C11);
}

#[test]
fn commits_in_the_background() {
    passes("background.c", Language::C11);
}

#[test]
fn memory_goes_back() {
    passes("discard.c", Language::C11);
}

#[test]
fn without_memory_the_process_ends() {
    // A limit of address space leaves no room for the shadow memory of a sanitizer.
    let program = compile("tests/c/no_memory.c", Language::C11, Build::Plain, &[]);
    assert_eq!(run(&program), "");
}

#[test]
fn entries_are_handed_over() {
    passes("handover.c", Language::C11);
}

#[test]
fn arrays_of_pages() {
    passes("pages.c", Language::C11);
}

#[test]
fn dirty_pages() {
    passes("dirty.c", Language::C11);
}

#[test]
fn errors_and_their_texts() {
    passes("errors.c", Language::C11);
}

#[test]
fn every_kernel_call_fails_once() {
    passes("failures.c", Language::C11);
}

#[test]
fn what_cannot_be_unmapped_is_told() {
    passes("leftovers.c", Language::C11);
}

#[test]
fn panics_poison_and_never_cross() {
    passes("panics.c", Language::C11);
}

#[test]
fn threads() {
    passes("threads.c", Language::C11);
}

#[test]
fn a_cancelled_thread_ends_outside_the_library() {
    passes("cancel.c", Language::C11);
}

#[test]
fn log_function() {
    passes("log.c", Language::C11);
}

#[test]
fn cpp_consumer() {
    passes("consumer.cpp", Language::Cpp17);
}

#[test]
fn the_header_stands_alone_and_structs_have_no_padding() {
    for language in [Language::C11, Language::Cpp17] {
        run(&compile("tests/c/layout.c", language, Build::Plain, &["-Wpadded"]));
    }
}

#[test]
fn the_example_does_what_it_says() {
    for build in [Build::Plain, Build::Sanitized] {
        let printed = run(&compile("tests/c/example.c", Language::C11, build, &[]));
        assert_eq!(printed, "1 calls mapped 64 MiB\n");
    }
}

/// On the model of the kernel. The other example needs a disk; the test machines run both.
#[test]
fn many_pages_are_one_entry() {
    for build in [Build::Plain, Build::Sanitized] {
        let printed = run(&compile("examples/many_pages.c", Language::C11, build, &[]));
        let counts = |how: &str| -> Option<Vec<&str>> {
            let line = printed.lines().find_map(|line| line.strip_prefix(how))?;
            Some(line.split_whitespace().take(2).collect())
        };
        assert_eq!(counts("the library, page by page").as_deref(), Some(&["256", "256"][..]), "{printed}");
        assert_eq!(counts("the library, one transaction").as_deref(), Some(&["1", "1"][..]), "{printed}");
    }
}

#[test]
fn the_nvme_example_compiles() {
    compile("examples/nvme_read.c", Language::C11, Build::Plain, &[]);
}

#[test]
fn the_readme_shows_the_example() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let example = include_str!("c/example.c").split_once('\n').expect("the licence is its first line").1;
    assert!(readme.contains(example), "README.md does not show ffi/tests/c/example.c as it is");
}

#[test]
fn one_version_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(installed().pkg_config(&["--modversion"]), [version]);
    let dynamic =
        must(Command::new("readelf").arg("--dynamic").arg(installed().library()), "install binutils");
    let soname = format!("Library soname: [libvfio_fast.so.{version}]");
    assert!(dynamic.contains(&soname), "no `{soname}` in\n{dynamic}");
}

#[test]
fn the_library_needs_only_the_c_library() {
    let dynamic =
        must(Command::new("readelf").arg("--dynamic").arg(installed().library()), "install binutils");
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        let name = line.split(['[', ']']).nth(1).unwrap_or(line);
        let known = ["libc.so.", "libgcc_s.so.", "ld-linux"].iter().any(|known| name.starts_with(known));
        assert!(known, "{name}: static linking and packaging would have to take it into account");
    }
}

/// The loader makes what it relocates read-only, resolves all symbols at the start, and gives no stack to execute.
#[test]
fn the_library_is_hardened() {
    let mut readelf = Command::new("readelf");
    readelf.args(["--segments", "--dynamic", "--wide"]).arg(installed().library());
    let told = must(&mut readelf, "install binutils");
    let line = |word: &str| told.lines().find(|line| line.contains(word)).unwrap_or_default();
    assert!(!line("GNU_RELRO").is_empty(), "{told}");
    assert!(line("(FLAGS_1)").contains("NOW"), "{told}");
    let stack: Vec<&str> = line("GNU_STACK").split_whitespace().collect();
    assert!(stack.contains(&"RW"), "{told}");
}

#[test]
fn exactly_the_documented_symbols_are_exported() {
    let library = installed().library();
    let mut nm = Command::new("nm");
    nm.args(["--dynamic", "--defined-only", "--format=just-symbols"]).arg(&library);
    let exported = must(&mut nm, "install binutils");
    let listed = include_str!("exports.txt");
    let set = |text: &'static str| text.lines().collect::<BTreeSet<_>>();
    assert_eq!(exported.lines().collect::<BTreeSet<_>>(), set(listed));
    assert!(set(listed).iter().all(|name| name.starts_with("vfio_fast_")));
}

/// Every export is one call of a guard, so that none lacks the NULL check, the panic boundary or the errno.
#[test]
fn every_export_is_one_call_of_a_guard() {
    // These return a constant.
    const PLAIN: [&str; 2] = ["vfio_fast_version", "vfio_fast_abi_version"];
    let files = std::fs::read_dir(root().join("ffi/src/exports")).expect("the folder of the exports");
    let source: String =
        files.map(|file| std::fs::read_to_string(file.expect("a file").path()).expect("its text")).collect();
    let mut found = BTreeSet::new();
    for function in source.split("#[unsafe(no_mangle)]\n").skip(1) {
        let (signature, rest) = function.split_once(" {\n").expect("a function has a body");
        let (body, _) = rest.split_once("\n}\n").expect("rustfmt closes a function at the margin");
        let name = signature.split_once("extern \"C\" fn ").and_then(|(_, rest)| rest.split_once('('));
        let name = name.expect("an export is an extern \"C\" fn").0;
        assert!(!signature.contains('&'), "{name}: a reference in an extern signature");
        let guards = ["guard(", "guard_handle(", "guard_text("];
        let calls: usize = guards.iter().map(|guard| body.matches(guard).count()).sum();
        assert_eq!(calls, usize::from(!PLAIN.contains(&name)), "{name}: calls of a guard");
        assert!(body.lines().count() <= 15, "{name}: {} lines", body.lines().count());
        found.insert(name);
    }
    assert_eq!(found, include_str!("exports.txt").lines().collect());
}
