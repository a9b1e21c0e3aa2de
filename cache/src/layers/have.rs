//! Which groups of a partial layer are proven: a bitmap, and the file that remembers it.
//!
//! The file has pages of 4 KiB, each with its own checksum: first a header (magic, version, size, root, boot id),
//! then the bitmap. A page that does not check claims nothing.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use weighlock_protocol::LayerId;
use weighlock_protocol::wire::bao::{GroupSet, LAYER_BYTES_MAX, group_count};

use crate::error::is_unreadable;

const PAGE_BYTES: usize = 4096;
const SUM_BYTES: usize = 32;
const BODY_BYTES: usize = PAGE_BYTES - SUM_BYTES;
/// Groups whose bits stand in one page.
const PAGE_GROUPS: u64 = BODY_BYTES as u64 * 8;
const MAGIC: &[u8; 8] = b"wl-have\0";
const VERSION: u32 = 1;
/// Longest boot id, in bytes.
const BOOT_ID_LEN_MAX: usize = 255;

/// A fixed number of bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    len: u64,
    count: u64,
}

impl Bitmap {
    pub(crate) fn new(len: u64) -> Self {
        Self { words: vec![0; len.div_ceil(64) as usize], len, count: 0 }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Number of bits set.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == self.len
    }

    pub(crate) fn has(&self, bit: u64) -> bool {
        bit < self.len && self.words[(bit / 64) as usize] & (1 << (bit % 64)) != 0
    }

    /// Sets a bit; false if it was set or is out of range.
    pub(crate) fn set(&mut self, bit: u64) -> bool {
        if bit >= self.len || self.has(bit) {
            return false;
        }
        self.words[(bit / 64) as usize] |= 1 << (bit % 64);
        self.count += 1;
        true
    }

    /// Whether any bit of `start..end` is set.
    pub(crate) fn any(&self, start: u64, end: u64) -> bool {
        self.next(start, true).is_some_and(|bit| bit < end)
    }

    /// Whether all bits of `start..end` are set.
    pub(crate) fn all(&self, start: u64, end: u64) -> bool {
        end <= self.len && self.next(start, false).is_none_or(|bit| bit >= end)
    }

    /// The first bit at or after `from` that is `value`.
    fn next(&self, from: u64, value: bool) -> Option<u64> {
        let mut bit = from;
        while bit < self.len {
            let word = self.words[(bit / 64) as usize];
            let word = if value { word } else { !word } >> (bit % 64);
            if word != 0 {
                let found = bit + u64::from(word.trailing_zeros());
                return (found < self.len).then_some(found);
            }
            bit = (bit / 64 + 1) * 64;
        }
        None
    }

    /// The set bits as ranges.
    pub(crate) fn to_set(&self) -> GroupSet {
        let mut boundaries = Vec::new();
        let mut from = 0;
        while let Some(start) = self.next(from, true) {
            let end = self.next(start, false).unwrap_or(self.len);
            boundaries.extend([start, end]);
            from = end;
        }
        GroupSet::new(boundaries.into()).unwrap_or_else(GroupSet::empty)
    }

    fn page(&self, page: u64) -> [u8; BODY_BYTES] {
        let mut body = [0; BODY_BYTES];
        let first = (page * PAGE_GROUPS / 64) as usize;
        for (out, word) in body.chunks_exact_mut(8).zip(self.words.iter().skip(first)) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        body
    }

    fn set_page(&mut self, page: u64, body: &[u8]) {
        for (i, byte) in body.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                self.set(page * PAGE_GROUPS + i as u64 * 8 + bit);
            }
        }
    }
}

/// What the header of a have-map says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) layer: LayerId,
    pub(crate) size: u64,
    pub(crate) boot_id: String,
}

/// The page of the file that holds the bit of `group`; the header is page 0 of the file.
pub(crate) fn page_of(group: u64) -> u64 {
    group / PAGE_GROUPS
}

/// Number of bitmap pages for a layer of `size` bytes.
pub(crate) fn page_count(size: u64) -> u64 {
    group_count(size).div_ceil(PAGE_GROUPS)
}

/// Writes the header.
pub(crate) fn write_header(file: &File, header: &Header) -> io::Result<()> {
    let boot_id = header.boot_id.as_bytes();
    let boot_id = &boot_id[..boot_id.len().min(BOOT_ID_LEN_MAX)];
    let mut page = [0; PAGE_BYTES];
    page[..8].copy_from_slice(MAGIC);
    page[8..12].copy_from_slice(&VERSION.to_le_bytes());
    page[16..24].copy_from_slice(&header.size.to_le_bytes());
    page[24..56].copy_from_slice(header.layer.as_bytes());
    page[56] = boot_id.len() as u8;
    page[57..57 + boot_id.len()].copy_from_slice(boot_id);
    let sum = blake3::hash(&page[..BODY_BYTES]);
    page[BODY_BYTES..].copy_from_slice(sum.as_bytes());
    file.write_all_at(&page, 0)
}

/// Reads the header; `None` if it is not whole or not of this version.
pub(crate) fn read_header(file: &File) -> io::Result<Option<Header>> {
    let Some(page) = read_page(file, 0)? else {
        return Ok(None);
    };
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&page[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let good = page[BODY_BYTES..] == *blake3::hash(&page[..BODY_BYTES]).as_bytes()
        && page[..8] == *MAGIC
        && page[8..12] == VERSION.to_le_bytes()
        && number(16) <= LAYER_BYTES_MAX;
    if !good {
        return Ok(None);
    }
    let mut layer = [0; 32];
    layer.copy_from_slice(&page[24..56]);
    let len = usize::from(page[56]);
    Ok(Some(Header {
        layer: LayerId(layer),
        size: number(16),
        boot_id: String::from_utf8_lossy(&page[57..57 + len]).into_owned(),
    }))
}

/// One page of the bitmap as it stands in the file.
pub(crate) fn page_image(layer: &LayerId, have: &Bitmap, page: u64) -> [u8; PAGE_BYTES] {
    let body = have.page(page);
    let mut out = [0; PAGE_BYTES];
    out[..BODY_BYTES].copy_from_slice(&body);
    out[BODY_BYTES..].copy_from_slice(page_sum(layer, page, &body).as_bytes());
    out
}

/// Writes one page of the bitmap.
pub(crate) fn write_page(file: &File, page: u64, image: &[u8; PAGE_BYTES]) -> io::Result<()> {
    file.write_all_at(image, (page + 1) * PAGE_BYTES as u64)
}

/// Reads the bitmap of a layer of `size` bytes. Pages that do not check count as empty; they are returned
/// as ranges of groups that may be here or not.
pub(crate) fn read_bitmap(file: &File, layer: &LayerId, size: u64) -> io::Result<(Bitmap, Vec<Range<u64>>)> {
    let mut have = Bitmap::new(group_count(size));
    let mut bad = Vec::new();
    for page in 0..page_count(size) {
        let read = match read_page(file, page + 1) {
            Err(e) if is_unreadable(&e) => Some([0xff; PAGE_BYTES]),
            read => read?,
        };
        match read {
            Some(bytes) if bytes[BODY_BYTES..] == *page_sum(layer, page, &bytes[..BODY_BYTES]).as_bytes() => {
                have.set_page(page, &bytes[..BODY_BYTES]);
            }
            // A page that was never written is all zeros, or past the end.
            Some(bytes) if bytes.iter().all(|byte| *byte == 0) => {}
            None => {}
            Some(_) => bad.push(page * PAGE_GROUPS..((page + 1) * PAGE_GROUPS).min(have.len())),
        }
    }
    Ok((have, bad))
}

fn page_sum(layer: &LayerId, page: u64, body: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(layer.as_bytes()).update(&page.to_le_bytes()).update(body);
    hasher.finalize()
}

fn read_page(file: &File, page: u64) -> io::Result<Option<[u8; PAGE_BYTES]>> {
    let mut bytes = [0; PAGE_BYTES];
    match file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64) {
        Ok(()) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmaps_give_their_ranges() {
        let mut map = Bitmap::new(200);
        for bit in [0, 1, 2, 63, 64, 65, 130, 199] {
            assert!(map.set(bit));
            assert!(!map.set(bit));
        }
        assert!(!map.set(200) && !map.has(200));
        assert_eq!(map.count(), 8);
        let expected = [0..3, 63..66, 130..131, 199..200];
        let set = expected.iter().fold(GroupSet::empty(), |set, r| set | GroupSet::from(r.clone()));
        assert_eq!(map.to_set(), set);
        assert!(map.all(63, 66) && !map.all(62, 66) && !map.all(199, 201));
        assert!(map.any(100, 131) && !map.any(100, 130));
        assert_eq!(Bitmap::new(70).to_set(), GroupSet::empty());
    }

    #[test]
    fn a_bad_page_claims_nothing_and_the_others_stand() {
        let file = tempfile::tempfile().expect("file");
        let size = PAGE_GROUPS * 16384 * 2 + 1;
        let layer = LayerId::of(b"x");
        let header = Header { layer, size, boot_id: "b1".into() };
        let mut have = Bitmap::new(group_count(size));
        for group in [0, 7, PAGE_GROUPS, PAGE_GROUPS + 9, 2 * PAGE_GROUPS] {
            have.set(group);
        }
        write_header(&file, &header).expect("write");
        for page in 0..page_count(size) {
            write_page(&file, page, &page_image(&layer, &have, page)).expect("write");
        }
        assert_eq!(read_header(&file).expect("read"), Some(header));
        assert_eq!(read_bitmap(&file, &layer, size).expect("read"), (have, Vec::new()));
        file.write_all_at(&[0xff], 2 * PAGE_BYTES as u64 + 100).expect("corrupt");
        let (got, bad) = read_bitmap(&file, &layer, size).expect("read");
        assert_eq!(bad.len(), 1);
        let left = [0..1, 7..8, 2 * PAGE_GROUPS..2 * PAGE_GROUPS + 1];
        let left = left.iter().fold(GroupSet::empty(), |set, r| set | GroupSet::from(r.clone()));
        assert_eq!(got.to_set(), left);
        // A page of another layer is as bad.
        let (other, _) = read_bitmap(&file, &LayerId::of(b"y"), size).expect("read");
        assert_eq!(other.count(), 0);
        file.write_all_at(&[1], 20).expect("corrupt");
        assert_eq!(read_header(&file).expect("read"), None);
    }
}
