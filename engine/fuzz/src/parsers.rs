//! The parsers of what the kernel writes: any bytes, and texts as the kernel writes them, compared with what they were
//! made of.

use std::fmt::Write;

use arbitrary::{Arbitrary, Unstructured};
use vfio_fast_engine::parsers;

/// The first byte of an input says what the rest is.
pub fn run(input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    match kind {
        b'c' => parsers::container_info(rest),
        b's' => any_smaps(rest),
        b't' => {
            let text = String::from_utf8_lossy(rest);
            parsers::movable_pages(&text);
            parsers::small_files(&text);
        }
        b'S' => with(rest, |smaps: Smaps| smaps.check()),
        b'Z' => with(rest, |zones: Vec<Zone>| check_zones(&zones)),
        _ => {}
    }
}

fn with<'a, T: Arbitrary<'a>>(bytes: &'a [u8], check: impl FnOnce(T)) {
    if let Ok(value) = T::arbitrary_take_rest(Unstructured::new(bytes)) {
        check(value);
    }
}

/// Two addresses in hexadecimal and a text.
fn any_smaps(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |byte| *byte == b'\n');
    let mut address = || u64::from_str_radix(std::str::from_utf8(parts.next()?).ok()?, 16).ok();
    if let (Some(start), Some(last)) = (address(), address())
        && start <= last
    {
        parsers::smaps(parts.next().unwrap_or_default(), start, last);
    }
}

/// A mapping as the kernel lists it, some pages after the one before.
#[derive(Arbitrary, Debug)]
struct Vma {
    gap: u8,
    pages: u8,
    /// Of `FLAGS`; the highest bit: no line of flags.
    flags: u8,
}

/// The names of flags in smaps: two of device memory, and those that they could be confused with.
const FLAGS: [&str; 7] = ["rd", "io", "pf", "wr", "iopf", "pfio", "mm"];
const NO_FLAGS: u8 = 1 << 7;

impl Vma {
    fn is_device(&self) -> bool {
        self.flags & NO_FLAGS == 0 && self.flags & 0b110 != 0
    }
}

#[derive(Arbitrary, Debug)]
struct Smaps {
    first: u16,
    pages: u8,
    vmas: Vec<Vma>,
}

impl Smaps {
    fn check(&self) {
        let (mut text, mut device, mut next) = (String::new(), vec![false; 1 << 16], 0usize);
        for vma in &self.vmas {
            let start = next + usize::from(vma.gap);
            let end = start + usize::from(vma.pages) + 1;
            next = end;
            let at = |page: usize| page << 12;
            writeln!(text, "{:08x}-{:08x} rw-s 00000000 00:0d 5   /x VmFlags: io", at(start), at(end))
                .unwrap();
            text += "Rss:                   0 kB\n";
            if vma.flags & NO_FLAGS == 0 {
                let set = FLAGS.iter().enumerate().filter(|(bit, _)| vma.flags >> bit & 1 == 1);
                let names: Vec<&str> = set.map(|(_, name)| *name).collect();
                writeln!(text, "VmFlags: {} ", names.join(" ")).unwrap();
            }
            if let Some(pages) = device.get_mut(start..end) {
                pages.fill(vma.is_device());
            }
        }
        let first = usize::from(self.first);
        let last = first + usize::from(self.pages);
        if next > device.len() || last >= device.len() {
            return;
        }
        let expected = device[first..=last].iter().all(|is| *is);
        let found = parsers::is_device(text.as_bytes(), (first as u64) << 12, ((last as u64) << 12) + 0xfff);
        assert_eq!(found, expected, "pages {first} to {last} of\n{text}");
    }
}

#[derive(Arbitrary, Debug)]
struct Zone {
    node: u8,
    /// Of `ZONES`.
    name: u8,
    managed: u32,
    free: u32,
}

const ZONES: [&str; 4] = ["Normal", "Movable", "Device", "DMA32"];

fn check_zones(zones: &[Zone]) {
    let (mut text, mut movable) = (String::new(), 0);
    for Zone { node, name, managed, free } in zones {
        let name = ZONES[usize::from(*name) % ZONES.len()];
        writeln!(text, "Node {node}, zone {name:>8}\n  pages free     {free}").unwrap();
        writeln!(text, "        present  {free}\n        managed  {managed}\n        cma      {free}")
            .unwrap();
        movable += if name == "Movable" { u64::from(*managed) } else { 0 };
    }
    assert_eq!(parsers::movable_pages(&text), movable, "{text}");
}
