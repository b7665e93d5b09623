//! Starting and stopping servers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use cowdisk::Kind;
use cowdisk::nbd::limits::STOP_TIME;
use cowdisk::nbd::protocol::Command;
use cowdisk::nbd::{Address, Export, Server, ServerOptions};

use crate::client::{Client, request, write};
use crate::ram::RamDisk;
use crate::{PATIENCE, Served, wait_until};

fn export(disk: &RamDisk) -> Vec<Export<RamDisk>> {
    vec![Export { name: String::new(), description: String::new(), disk: disk.clone() }]
}

#[test]
fn stop_ends_idle_clients_in_every_phase() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::with(&disk, |options| options.queues = 2);
    let mut silent = served.connect();
    let mut greeted = served.connect();
    greeted.greet(3);
    let mut ready = served.ready(true);
    wait_until("all are connected", || served.server.connections() == 3);
    let (done, stopped) = mpsc::channel();
    let Served { server, path, _dir } = served;
    std::thread::spawn(move || done.send(server.stop()));
    // The bound for busy clients must not be needed.
    stopped.recv_timeout(STOP_TIME).expect("stop waits for an idle client").unwrap();
    assert_eq!(silent.rest().len(), 18);
    assert_eq!(greeted.rest(), b"");
    assert_eq!(ready.rest(), b"");
    assert!(!path.exists());
    assert!(UnixStream::connect(&path).is_err());
    assert_eq!(disk.handles(), 1, "the server still holds the disk");
}

#[test]
fn stop_lets_running_requests_finish() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(true);
    disk.hold();
    client.send(&write(0, 0, &[3; 4096], 1));
    wait_until("the write is running", || disk.waiting() == 1);
    let Served { server, path, _dir } = served;
    let stopping = std::thread::spawn(move || server.stop());
    wait_until("new clients are refused", || UnixStream::connect(&path).is_err());
    disk.let_go();
    assert_eq!(client.simple(), (0, 1));
    assert_eq!(client.rest(), b"");
    stopping.join().unwrap().unwrap();
    assert_eq!(disk.bytes(0..4096), [3; 4096]);
}

#[test]
fn stop_has_a_bound_when_a_disk_does_not_answer() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::new(&disk);
    let mut client = served.ready(true);
    disk.hold();
    client.send(&write(0, 0, &[3; 4096], 1));
    wait_until("the write is running", || disk.waiting() == 1);
    let (done, stopped) = mpsc::channel();
    let Served { server, path: _, _dir } = served;
    std::thread::spawn(move || done.send(server.stop()));
    stopped.recv_timeout(PATIENCE).expect("stop has a bound").unwrap();
    assert_eq!(client.rest(), b"");
}

#[test]
fn dropping_a_server_stops_it() {
    let served = Served::new(&RamDisk::new(1 << 20));
    let mut client = served.ready(true);
    let Served { server, path, _dir } = served;
    drop(server);
    assert_eq!(client.rest(), b"");
    assert!(!path.exists());
}

#[test]
fn connections_are_dealt_out_to_the_queues() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::with(&disk, |options| options.queues = 3);
    let mut clients: Vec<Client> = (0..6).map(|_| served.ready(true)).collect();
    for (n, client) in (0..).zip(&mut clients) {
        assert_eq!(client.call(&write(0, n * 512, &[1; 512], n)), 0);
    }
    let mut queues = disk.queues();
    queues.sort_unstable();
    assert_eq!(queues, [0, 1, 2]);
    assert_eq!(served.server.stats().connections, 6);
}

#[test]
fn an_address_in_use_is_refused() {
    let disk = RamDisk::new(1 << 20);
    let served = Served::with(&disk, |options| options.socket_mode = 0o660);
    assert_eq!(std::fs::metadata(&served.path).unwrap().permissions().mode() & 0o777, 0o660);
    let again = Server::start(export(&disk), ServerOptions::new(Address::Unix(served.path.clone())));
    let error = again.unwrap_err();
    assert_eq!((error.kind(), error.path()), (Kind::InUse, Some(served.path.as_path())));
    served.ready(true).disconnect();
}

#[test]
fn options_out_of_range_are_refused_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for (queues, depth) in [(0, 1), (65, 1), (1, 0), (1, 257)] {
        let options = ServerOptions { queues, depth, ..ServerOptions::new(Address::Unix(path.clone())) };
        assert_eq!(Server::start(export(&RamDisk::new(512)), options).unwrap_err().kind(), Kind::Usage);
    }
    assert!(!path.exists());
}

#[test]
fn stop_ends_a_client_that_never_pauses() {
    let options = ServerOptions::new(Address::parse("tcp:127.0.0.1:0").unwrap());
    let server = Server::start(export(&RamDisk::new(1 << 20)), options).unwrap();
    let address = server.uri().strip_prefix("nbd://").unwrap().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream.write_all(&crate::client::option(1, b"")).unwrap();
    let mut answers = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        let flushes = request(Command::Flush, 0, 0, 0, 1).repeat(16);
        while stream.write_all(&flushes).is_ok() {}
    });
    let receiver =
        std::thread::spawn(move || while answers.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {});
    wait_until("the client is busy", || server.stats().flush.requests > 1000);
    let (done, stopped) = mpsc::channel();
    std::thread::spawn(move || done.send(server.stop()));
    stopped.recv_timeout(STOP_TIME).expect("stop waits for a busy client").unwrap();
    sender.join().unwrap();
    receiver.join().unwrap();
}

#[test]
fn tcp_works_as_well() {
    let disk = RamDisk::new(1 << 20);
    let options = ServerOptions::new(Address::parse("tcp:127.0.0.1:0").unwrap());
    let server = Server::start(export(&disk), options).unwrap();
    let uri = server.uri();
    let address = uri.strip_prefix("nbd://").unwrap().to_owned();
    assert!(!address.ends_with(":0"), "{uri}");
    let mut stream = TcpStream::connect(&address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    stream.write_all(&3_u32.to_be_bytes()).unwrap();
    stream.write_all(&crate::client::option(1, b"")).unwrap();
    stream.write_all(&request(Command::Flush, 0, 0, 0, 9)).unwrap();
    let mut reply = [0; 10 + 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[14..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
    let same = ServerOptions::new(Address::Tcp(address.clone()));
    assert_eq!(Server::start(export(&disk), same).unwrap_err().kind(), Kind::InUse);
    server.stop().unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    assert!(TcpStream::connect(&address).is_err());
}
