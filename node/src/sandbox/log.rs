//! What the evaluator printed: all of it, or its beginning and its end.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// A file that takes any amount and keeps a bounded part.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    /// What still goes straight into the file.
    head_left: usize,
    /// The last bytes after that.
    tail: VecDeque<u8>,
    tail_max: usize,
    total: u64,
}

impl Log {
    /// A new file that keeps `limit` bytes, half of them from the end, and a line in between.
    pub(super) fn create(path: &Path, limit: u64) -> io::Result<Self> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let tail_max = limit / 2;
        let file = File::create_new(path)?;
        Ok(Self { file, head_left: limit - tail_max, tail: VecDeque::new(), tail_max, total: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.total += bytes.len() as u64;
        let (head, rest) = bytes.split_at(bytes.len().min(self.head_left));
        self.file.write_all(head)?;
        self.head_left -= head.len();
        let rest = &rest[rest.len().saturating_sub(self.tail_max)..];
        let surplus = (self.tail.len() + rest.len()).saturating_sub(self.tail_max);
        self.tail.drain(..surplus);
        self.tail.extend(rest);
        Ok(())
    }

    /// Writes the end, unless the disk is full. Answers how much was printed and how much of that was left out.
    pub(super) fn finish(mut self) -> io::Result<(u64, u64)> {
        let head = self.file.metadata()?.len();
        let left_out = self.total - head - self.tail.len() as u64;
        let mut end = Vec::with_capacity(self.tail.len() + 64);
        if left_out > 0 {
            write!(end, "\n[... {left_out} bytes left out ...]\n")?;
        }
        end.extend(&self.tail);
        match self.file.write_all(&end) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                Ok((self.total, left_out + self.tail.len() as u64))
            }
            written => written.map(|()| (self.total, left_out)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn beginning_and_end_are_kept_however_it_was_printed(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            limit in 0u64..200,
        ) {
            let dir = tempfile::tempdir().expect("tempdir");
            let path = dir.path().join("log");
            let mut log = Log::create(&path, limit).expect("created");
            for chunk in &chunks {
                log.write(chunk).expect("written");
            }
            let (total, left_out) = log.finish().expect("finished");
            let all = chunks.concat();
            let kept = std::fs::read(&path).expect("read");
            prop_assert_eq!(total, all.len() as u64);
            if all.len() as u64 <= limit {
                prop_assert_eq!(left_out, 0);
                prop_assert_eq!(kept, all);
            } else {
                let tail = usize::try_from(limit).expect("small") / 2;
                let head = usize::try_from(limit).expect("small") - tail;
                prop_assert_eq!(left_out, total - limit);
                prop_assert!(kept.starts_with(&all[..head]) && kept.ends_with(&all[all.len() - tail..]));
                let said = format!("{left_out} bytes left out");
                prop_assert!(String::from_utf8_lossy(&kept[head..]).contains(&said));
            }
        }
    }

    #[test]
    fn a_log_that_is_there_is_not_written_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("log");
        std::fs::write(&path, "mine").expect("written");
        assert!(Log::create(&path, 10).is_err());
    }
}
