//! Bounds on what clients can make the server hold or do.

use std::time::Duration;

use crate::limits::MAX_REQUEST_BYTES;

/// Connections of one server; further ones are closed at once.
pub const MAX_CONNECTIONS: usize = 64;
/// Requests one connection may have running, unless the options say otherwise.
pub const DEFAULT_DEPTH: usize = 64;
/// Largest `depth` option.
pub const MAX_DEPTH: usize = 256;
/// Memory for the data of one connection's running requests. With the receive buffer this bounds a server with
/// the most connections to 150 MiB.
pub const ARENA_BYTES: usize = 2 << 20;
/// Memory for received bytes that are not yet looked at, per connection: headers and small payloads.
pub const RECEIVE_BYTES: usize = 256 << 10;
/// A payload with at least this many bytes still to come is received where it is needed, not copied there.
pub const DIRECT_BYTES: usize = 32 << 10;
/// Largest payload of READ and WRITE, in bytes; announced to clients.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// A longer WRITE is split into parts of this many bytes: the disk's largest atomic write.
#[expect(clippy::cast_possible_truncation, reason = "1 MiB")]
pub const WRITE_PART: usize = MAX_REQUEST_BYTES as usize;
/// A longer READ is done in parts of this many bytes, one after the other.
pub const READ_PART: usize = 256 << 10;

/// Options a client may send in one handshake.
pub const MAX_OPTIONS: usize = 256;
/// Option data that is looked at, in bytes: the longest name with a list of information requests.
pub const MAX_OPTION_BYTES: u32 = 16 << 10;
/// Option data that is skipped and refused with TOO_BIG; a client that sends more is cut off.
pub const MAX_OPTION_SKIP: u32 = 1 << 20;
/// Longest name and description in bytes (NBD protocol, "Conventions").
pub const MAX_STRING: usize = 4096;
/// Replies of a handshake are sent when this many bytes have gathered.
pub const HANDSHAKE_CHUNK: usize = 32 << 10;

/// Time a client has from the connection to the transmission phase.
pub const HANDSHAKE_TIME: Duration = Duration::from_secs(30);
/// Time that running requests have when the server stops.
pub const STOP_TIME: Duration = Duration::from_secs(5);
/// Pause after a failure to accept a connection (no descriptors left).
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

// A part always fits into an arena that has nothing else in it, so no request waits for ever.
const _: () = assert!(WRITE_PART <= ARENA_BYTES && READ_PART <= ARENA_BYTES);
