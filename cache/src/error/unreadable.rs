//! What errors of a read say of the bytes on the disk.

use std::io;

/// Whether an error of a read says that the disk does not give back what was written: a bad sector, a file system that finds
/// itself damaged, a file that ends too early.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    const DAMAGE: [Errno; 6] =
        [Errno::IO, Errno::NODATA, Errno::ILSEQ, Errno::REMOTEIO, Errno::UCLEAN, Errno::BADMSG];
    error.kind() == io::ErrorKind::UnexpectedEof
        || Errno::from_io_error(error).is_some_and(|error| DAMAGE.contains(&error))
}
