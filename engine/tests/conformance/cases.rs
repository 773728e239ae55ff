//! The results of type1 and iommufd according to their sources (Linux 6.12 and 7.2): one table for the model and for
//! real kernels.
//!
//! Never derive an expected result from the model's behaviour.

use libc::{EADDRINUSE, EEXIST, EFAULT, EINVAL, ENOENT, ENOMEM, ENOSPC, EOVERFLOW};

use super::run::Answer::{self, Bytes, Done, No};
use super::run::Hva::{self, At, Nothing, ReadOnly, Writable};
use super::run::{Case, Kernel, Needs, Op, Step};

/// KiB of a page where these cases run, if not 4. Read when this is compiled, because the tables are constants.
const PAGE_KIB: Option<&str> = option_env!("VFIO_FAST_PAGE_KIB");
/// The smallest page of the IOMMU and of the kernel.
pub const PAGE: u64 = match PAGE_KIB {
    None => 4 << 10,
    Some(kib) => match kib.as_bytes() {
        b"4" => 4 << 10,
        b"16" => 16 << 10,
        b"64" => 64 << 10,
        _ => panic!("VFIO_FAST_PAGE_KIB is 4, 16 or 64"),
    },
};
/// Bytes of each kind of memory that the cases use: its pages 0 to 15.
pub const MEMORY: u64 = 16 * PAGE;

/// IOVAs that any IOMMU can translate and that are not reserved.
const A: u64 = 0x1000_0000;
/// The 1 MiB range in which x86 receives message-signalled interrupts, or in which the SMMU's driver maps what receives
/// them on arm64: never a valid IOVA.
pub const INTERRUPTS: u64 = if cfg!(target_arch = "aarch64") { 0x800_0000 } else { 0xfee0_0000 };
pub const AFTER_INTERRUPTS: u64 = INTERRUPTS + 0x10_0000;
/// The last page of the 64-bit space.
const LAST: u64 = u64::MAX - (PAGE - 1);

/// Both drivers return the same result.
fn same(op: Op, answer: Answer) -> Step {
    Step { op, type1: answer, iommufd: answer }
}

/// The drivers return different results.
fn each(op: Op, type1: Answer, iommufd: Answer) -> Step {
    Step { op, type1, iommufd }
}

/// A map call that succeeds with both drivers: `pages` writable pages of `memory`, starting at its page `from`.
fn put(iova: u64, pages: u64, memory: Hva) -> Step {
    same(map(iova, pages * PAGE, memory), Done)
}

fn map(iova: u64, length: u64, memory: Hva) -> Op {
    Op::Map { iova, length, memory, writable: true }
}

fn map_read(iova: u64, length: u64, memory: Hva) -> Op {
    Op::Map { iova, length, memory, writable: false }
}

fn unmap(iova: u64, length: u64) -> Op {
    Op::Unmap { iova, length }
}

/// The address of page `number` of the writable memory.
fn page(number: u64) -> Hva {
    Writable(number * PAGE)
}

/// The result for a range that wraps: EINVAL up to 6.17, EOVERFLOW since.
const WRAPS: Answer = No(&[EINVAL, EOVERFLOW]);
const CUTS: (Answer, Answer) = (No(&[EINVAL]), No(&[ENOENT]));
const EMPTY: (Answer, Answer) = (Bytes(0), No(&[ENOENT]));

fn cuts(iova: u64, length: u64) -> Step {
    each(unmap(iova, length), CUTS.0, CUTS.1)
}

fn empty(iova: u64, length: u64) -> Step {
    each(unmap(iova, length), EMPTY.0, EMPTY.1)
}

fn gone(iova: u64, pages: u64, bytes: u64) -> Step {
    same(unmap(iova, pages * PAGE), Bytes(bytes))
}

pub fn all() -> Vec<Case> {
    [maps(), unmaps(), numbers(), memory(), limits(), files(), without_a_device()].concat()
}

fn case(name: &'static str, steps: Vec<Step>) -> Case {
    Case { name, only: None, needs: Needs::default(), steps, left: [vec![], vec![]] }
}

impl Case {
    /// Sets what is mapped at the end, in pages from [`A`] on.
    fn leaves(self, pages: &[(u64, u64)]) -> Self {
        self.leaves_each(pages, pages)
    }

    /// Sets what is mapped at the end, on type1 and on iommufd.
    fn leaves_each(self, type1: &[(u64, u64)], iommufd: &[(u64, u64)]) -> Self {
        let at = |pages: &[(u64, u64)]| pages.iter().map(|(n, count)| (A + n * PAGE, count * PAGE)).collect();
        Self { left: [at(type1), at(iommufd)], ..self }
    }

    fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    fn only(self, kernel: Kernel) -> Self {
        Self { only: Some(kernel), ..self }
    }
}

fn maps() -> Vec<Case> {
    let at = |n: u64| A + n * PAGE;
    let exists = |n, pages| same(map(at(n), pages * PAGE, page(8)), No(&[EEXIST]));
    vec![
        case("map and unmap", vec![put(A, 4, page(0)), gone(A, 4, 4 * PAGE)]),
        case(
            "neighbours do not overlap",
            vec![put(at(4), 4, page(4)), put(A, 4, page(0)), put(at(8), 4, page(8))],
        )
        .leaves(&[(0, 4), (4, 4), (8, 4)]),
        case("one memory at two IOVAs", vec![put(A, 4, page(0)), put(at(4), 4, page(0))])
            .leaves(&[(0, 4), (4, 4)]),
        case("the same again", vec![put(A, 4, page(0)), same(map(A, 4 * PAGE, page(0)), No(&[EEXIST]))])
            .leaves(&[(0, 4)]),
        case("overlap at the head", vec![put(at(4), 4, page(0)), exists(2, 4)]).leaves(&[(4, 4)]),
        case("overlap at the tail", vec![put(at(4), 4, page(0)), exists(6, 4)]).leaves(&[(4, 4)]),
        case("overlap inside", vec![put(at(4), 4, page(0)), exists(5, 1)]).leaves(&[(4, 4)]),
        case("overlap around", vec![put(at(4), 4, page(0)), exists(2, 8)]).leaves(&[(4, 4)]),
        case("overlap with two", vec![put(A, 2, page(0)), put(at(4), 2, page(2)), exists(1, 4)])
            .leaves(&[(0, 2), (4, 2)]),
        case(
            "overlap comes before the memory",
            vec![put(A, 4, page(0)), same(map(A, PAGE, Nothing), No(&[EEXIST]))],
        )
        .leaves(&[(0, 4)]),
        case(
            "overlap and a misaligned host address",
            vec![put(A, 4, page(0)), each(map(A, PAGE, Writable(0x800)), No(&[EINVAL]), No(&[EEXIST]))],
        )
        .leaves(&[(0, 4)]),
        case(
            "what was unmapped can be mapped",
            vec![put(A, 4, page(0)), gone(A, 4, 4 * PAGE), put(at(1), 2, page(4))],
        )
        .leaves(&[(1, 2)]),
    ]
}

fn unmaps() -> Vec<Case> {
    let at = |n: u64| A + n * PAGE;
    vec![
        case("cut: begins inside", vec![put(A, 4, page(0)), cuts(at(1), 3 * PAGE)]).leaves(&[(0, 4)]),
        case("cut: lies inside", vec![put(A, 4, page(0)), cuts(at(1), 2 * PAGE)]).leaves(&[(0, 4)]),
        case("cut: ends inside", vec![put(A, 4, page(0)), cuts(A, 3 * PAGE)]).leaves(&[(0, 4)]),
        case("cut: begins before and ends inside", vec![put(at(1), 4, page(0)), cuts(A, 3 * PAGE)])
            .leaves(&[(1, 4)]),
        case("cut: begins inside and ends behind", vec![put(A, 4, page(0)), cuts(at(2), 8 * PAGE)])
            .leaves(&[(0, 4)]),
        // iommufd goes from entry to entry, and the entries before the one that is cut stay unmapped.
        case("cut: the second of two", vec![put(A, 2, page(0)), put(at(2), 2, page(2)), cuts(A, 3 * PAGE)])
            .leaves_each(&[(0, 2), (2, 2)], &[(2, 2)]),
        case(
            "cut: the first of two",
            vec![put(A, 2, page(0)), put(at(2), 2, page(2)), cuts(at(1), 3 * PAGE)],
        )
        .leaves(&[(0, 2), (2, 2)]),
        case(
            "cut: the last of three with holes",
            vec![put(A, 1, page(0)), put(at(2), 1, page(2)), put(at(4), 4, page(4)), cuts(A, 6 * PAGE)],
        )
        .leaves_each(&[(0, 1), (2, 1), (4, 4)], &[(4, 4)]),
        case("nothing there", vec![empty(A, 4 * PAGE)]),
        case("nothing there any more", vec![put(A, 4, page(0)), gone(A, 4, 4 * PAGE), empty(A, 4 * PAGE)]),
        case("nothing in the hole", vec![put(A, 1, page(0)), put(at(2), 1, page(2)), empty(at(1), PAGE)])
            .leaves(&[(0, 1), (2, 1)]),
        case(
            "several with holes",
            vec![put(A, 1, page(0)), put(at(2), 2, page(2)), put(at(8), 1, page(8)), gone(A, 16, 4 * PAGE)],
        ),
        case("more than is there", vec![put(at(4), 2, page(0)), gone(A, 16, 2 * PAGE)]),
        case(
            "only what is inside",
            vec![
                put(A, 2, page(0)),
                put(at(2), 2, page(2)),
                put(at(4), 2, page(4)),
                gone(at(2), 2, 2 * PAGE),
            ],
        )
        .leaves(&[(0, 2), (4, 2)]),
        case(
            "everything",
            vec![
                put(A, 1, page(0)),
                put(at(2), 2, page(2)),
                put(AFTER_INTERRUPTS, 1, page(4)),
                same(Op::UnmapAll, Bytes(4 * PAGE)),
                same(Op::UnmapAll, Bytes(0)),
            ],
        ),
        case("everything of nothing", vec![same(Op::UnmapAll, Bytes(0))]),
    ]
}

/// Cases with invalid addresses and lengths.
fn numbers() -> Vec<Case> {
    let bad = |op| same(op, No(&[EINVAL]));
    let half = PAGE / 2;
    vec![
        case("misaligned IOVA", vec![bad(map(A + half, PAGE, page(0)))]),
        case("misaligned length", vec![bad(map(A, PAGE + half, page(0))), bad(map(A, 1, page(0)))]),
        case("misaligned host address", vec![bad(map(A, PAGE, Writable(half)))]),
        case("misaligned unmap inside", vec![put(A, 4, page(0)), cuts(A + half, 2 * PAGE), cuts(A, half)])
            .leaves(&[(0, 4)]),
        // iommufd's unmap checks entries, not alignment.
        case(
            "misaligned unmap around",
            vec![put(A, 2, page(0)), each(unmap(A - half, 3 * PAGE), No(&[EINVAL]), Bytes(2 * PAGE))],
        )
        .leaves_each(&[(0, 2)], &[]),
        case(
            "misaligned length of an unmap",
            vec![put(A, 2, page(0)), each(unmap(A, 2 * PAGE + 1), No(&[EINVAL]), Bytes(2 * PAGE))],
        )
        .leaves_each(&[(0, 2)], &[]),
        case("no length", vec![bad(map(A, 0, page(0))), put(A, 1, page(0)), bad(unmap(A, 0))])
            .leaves(&[(0, 1)]),
        case("map around the end", vec![each(map(LAST, 2 * PAGE, page(0)), WRAPS, No(&[EOVERFLOW]))]),
        case("unmap around the end", vec![each(unmap(LAST, 2 * PAGE), WRAPS, No(&[EOVERFLOW]))]),
        case("host address around the end", vec![each(map(A, 2 * PAGE, At(LAST)), WRAPS, No(&[EOVERFLOW]))]),
        // iommufd computes the byte after the last one.
        case(
            "host address up to the end",
            vec![each(map(A, PAGE, At(LAST)), No(&[EFAULT]), No(&[EOVERFLOW]))],
        ),
        case(
            "the largest IOVA",
            vec![
                each(map(u64::MAX, PAGE, page(0)), WRAPS, No(&[EOVERFLOW])),
                each(unmap(u64::MAX, PAGE), No(&[EINVAL]), No(&[EOVERFLOW])),
            ],
        ),
        case(
            "the largest length",
            vec![
                put(A, 1, page(0)),
                each(map(0, u64::MAX, page(0)), WRAPS, No(&[EOVERFLOW])),
                each(unmap(A, u64::MAX), No(&[EINVAL]), No(&[EOVERFLOW])),
            ],
        )
        .leaves(&[(0, 1)]),
        // iommufd takes this length for the whole space.
        case(
            "the largest length from 0",
            vec![put(A, 2, page(0)), each(unmap(0, u64::MAX), No(&[EINVAL]), Bytes(2 * PAGE))],
        )
        .leaves_each(&[(0, 2)], &[]),
        case(
            "where interrupts are",
            vec![
                bad(map(INTERRUPTS, PAGE, page(0))),
                bad(map(INTERRUPTS - PAGE, 2 * PAGE, page(0))),
                bad(map(AFTER_INTERRUPTS - PAGE, 2 * PAGE, page(0))),
                put(INTERRUPTS - PAGE, 1, page(0)),
                put(AFTER_INTERRUPTS, 1, page(1)),
                same(unmap(INTERRUPTS - PAGE, AFTER_INTERRUPTS - INTERRUPTS + 2 * PAGE), Bytes(2 * PAGE)),
            ],
        ),
        case(
            "overlap and a reserved IOVA",
            vec![
                put(INTERRUPTS - PAGE, 1, page(0)),
                each(map(INTERRUPTS - PAGE, 2 * PAGE, page(0)), No(&[EEXIST]), No(&[EINVAL])),
                same(unmap(INTERRUPTS - PAGE, PAGE), Bytes(PAGE)),
            ],
        ),
    ]
}

/// Cases about the kind of memory at the host address.
fn memory() -> Vec<Case> {
    let at = |n: u64| A + n * PAGE;
    let fault = |op| same(op, No(&[EFAULT]));
    vec![
        case("read-only of writable memory", vec![same(map_read(A, 4 * PAGE, page(0)), Done)])
            .leaves(&[(0, 4)]),
        case(
            "writable of read-only memory",
            vec![
                fault(map(A, PAGE, ReadOnly(0))),
                same(map_read(A, PAGE, ReadOnly(0)), Done),
                gone(A, 1, PAGE),
            ],
        ),
        case(
            "no memory",
            vec![fault(map(A, PAGE, Nothing)), fault(map_read(A, PAGE, Nothing)), put(A, 1, page(0))],
        )
        .leaves(&[(0, 1)]),
        // The writable memory ends here, and nothing is mapped after it.
        case(
            "half of it is no memory",
            vec![fault(map(A, 2 * PAGE, page(15))), empty(A, 2 * PAGE), put(at(1), 1, page(0))],
        )
        .leaves(&[(1, 1)]),
    ]
}

fn limits() -> Vec<Case> {
    let at = |n: u64| A + n * PAGE;
    let memlock = Needs { memlock_pages: Some(8), ..Needs::default() };
    let no_memory = |iova, pages| same(map(iova, pages * PAGE, page(0)), No(&[ENOMEM]));
    vec![
        case(
            "as much as may be locked",
            vec![put(A, 8, page(0)), no_memory(at(8), 1), gone(A, 8, 8 * PAGE), put(at(8), 8, page(0))],
        )
        .needs(memlock)
        .leaves(&[(8, 8)]),
        case("more than may be locked", vec![no_memory(A, 9), empty(A, 9 * PAGE), put(A, 8, page(0))])
            .needs(memlock)
            .leaves(&[(0, 8)]),
        case(
            "what is mapped twice is locked twice",
            vec![put(A, 4, page(0)), put(at(4), 4, page(0)), no_memory(at(8), 1)],
        )
        .needs(memlock)
        .leaves(&[(0, 4), (4, 4)]),
        case(
            "read-only memory is locked as well",
            vec![same(map_read(A, 8 * PAGE, page(0)), Done), no_memory(at(8), 1)],
        )
        .needs(memlock)
        .leaves(&[(0, 8)]),
        case(
            "what fails is not locked",
            vec![same(map(A, 2 * PAGE, page(15)), No(&[EFAULT])), put(A, 8, page(0)), no_memory(at(8), 1)],
        )
        .needs(memlock)
        .leaves(&[(0, 8)]),
        case(
            "as many entries as there may be",
            vec![
                put(A, 1, page(0)),
                put(at(1), 1, page(1)),
                same(map(A, PAGE, page(2)), No(&[EEXIST])),
                // Of two errors, ENOSPC is checked before the bad IOVA and after the bad alignment.
                same(map(INTERRUPTS, PAGE, page(2)), No(&[ENOSPC])),
                same(map(at(2), PAGE + 1, page(2)), No(&[EINVAL])),
                same(map(at(2), PAGE, page(2)), No(&[ENOSPC])),
                gone(A, 1, PAGE),
                put(at(2), 1, page(2)),
            ],
        )
        .needs(Needs { entries: Some(2), ..Needs::default() })
        .only(Kernel::Type1)
        .leaves(&[(1, 1), (2, 1)]),
    ]
}

/// Cases of IOMMU_IOAS_MAP_FILE, since Linux 6.13.
fn files() -> Vec<Case> {
    let at = |n: u64| A + n * PAGE;
    let map = |iova, length, offset, answer| {
        let op = Op::MapFile { iova, length, offset, writable: true };
        same(op, answer)
    };
    let file = |name, steps| case(name, steps).only(Kernel::Iommufd);
    vec![
        file("a file", vec![map(A, 4 * PAGE, 0, Done), gone(A, 4, 4 * PAGE)]),
        file("a whole file", vec![map(A, MEMORY, 0, Done)]).leaves(&[(0, 16)]),
        file(
            "a file for reading",
            vec![same(Op::MapFile { iova: A, length: PAGE, offset: PAGE, writable: false }, Done)],
        )
        .leaves(&[(0, 1)]),
        file(
            "a file is an entry as others are",
            vec![
                map(A, 4 * PAGE, 8 * PAGE, Done),
                map(at(3), 4 * PAGE, 0, No(&[EEXIST])),
                same(super::cases::map(at(3), PAGE, page(0)), No(&[EEXIST])),
                cuts(at(1), 3 * PAGE),
                map(at(4), 2 * PAGE, 8 * PAGE, Done),
                gone(A, 6, 6 * PAGE),
            ],
        ),
        file(
            "past the end of a file",
            vec![map(A, 4 * PAGE, 13 * PAGE, No(&[EINVAL])), map(A, PAGE, MEMORY, No(&[EINVAL]))],
        ),
        file(
            "a file, misaligned",
            vec![
                map(A, PAGE, PAGE / 2, No(&[EINVAL])),
                map(A + PAGE / 2, PAGE, 0, No(&[EINVAL])),
                map(A, PAGE + 1, 0, No(&[EINVAL])),
            ],
        ),
        file(
            "a file, around the end",
            vec![map(A, 0, 0, No(&[EINVAL])), map(A, 2 * PAGE, LAST, No(&[EOVERFLOW]))],
        ),
        file(
            "a file where interrupts are",
            vec![map(INTERRUPTS, PAGE, 0, No(&[EINVAL])), map(A, PAGE, 0, Done)],
        )
        .leaves(&[(0, 1)]),
        file(
            "a file's pages are locked as others are",
            vec![
                map(A, 9 * PAGE, 0, No(&[ENOMEM])),
                map(A, 8 * PAGE, 0, Done),
                map(at(8), PAGE, 8 * PAGE, No(&[ENOMEM])),
            ],
        )
        .needs(Needs { memlock_pages: Some(8), ..Needs::default() })
        .leaves(&[(0, 8)]),
    ]
}

/// Cases of an IOAS before its first device: every map succeeds, and attaching the device returns the error.
fn without_a_device() -> Vec<Case> {
    let at = |n: u64| A + n * PAGE;
    let needs = Needs { no_device: true, ..Needs::default() };
    let later = |name, steps| case(name, steps).needs(needs).only(Kernel::Iommufd);
    let attach = |answer| same(Op::Attach, answer);
    vec![
        later(
            "no memory, noticed late",
            vec![put(A, 1, Nothing), attach(No(&[EFAULT])), gone(A, 1, PAGE), attach(Done)],
        ),
        later(
            "read-only memory, noticed late",
            vec![put(A, 1, ReadOnly(0)), put(at(1), 1, page(0)), attach(No(&[EFAULT]))],
        )
        .leaves(&[(0, 1), (1, 1)]),
        later(
            "misaligned, noticed late",
            vec![
                same(map(A + PAGE / 2, PAGE / 2, Writable(PAGE / 2)), Done),
                attach(No(&[EADDRINUSE])),
                same(unmap(A, PAGE), Bytes(PAGE / 2)),
                attach(Done),
            ],
        ),
        later(
            "where interrupts are, noticed late",
            vec![
                put(INTERRUPTS, 1, page(0)),
                attach(No(&[EADDRINUSE])),
                gone(INTERRUPTS, 1, PAGE),
                attach(Done),
                same(map(INTERRUPTS, PAGE, page(0)), No(&[EINVAL])),
            ],
        ),
        later(
            "overlap, noticed at once",
            vec![put(A, 4, page(0)), same(map(at(3), PAGE, page(0)), No(&[EEXIST]))],
        )
        .leaves(&[(0, 4)]),
        later(
            "locked when the device comes",
            vec![
                put(A, 9, page(0)),
                attach(No(&[ENOMEM])),
                gone(A, 9, 9 * PAGE),
                put(A, 8, page(0)),
                attach(Done),
                same(map(at(8), PAGE, page(0)), No(&[ENOMEM])),
            ],
        )
        .needs(Needs { memlock_pages: Some(8), ..needs })
        .leaves(&[(0, 8)]),
    ]
}
