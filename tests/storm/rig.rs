//! A session without its logins: a forwarder, two real processors, a client's
//! socket and those of some servers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use openssl::ssl::SslVersion;
use sqlproxy::internal::Exchange;
use sqlproxy::internal::Stream;
use sqlproxy::internal::{
    Closing, Direction, Forwarder, Interrupt, Ordered, Ready, Suspension, Ticket,
};
use sqlproxy::internal::{Context, ProcessorExit, ServerStream, run_requests, run_responses};
use sqlproxy::internal::{ReadDeadline, Socket};

use crate::support::PATIENCE;
use crate::tls::peer::{self, connect};

/// Two ends of one loopback connection.
pub(super) fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    for end in [&near, &far] {
        end.set_nodelay(true).unwrap();
    }
    (near, far)
}

/// The proxy's connection to one server.
pub(super) struct Leg(Arc<Stream>);

impl Leg {
    /// Whether `other` is this very connection.
    pub(super) fn is(self: &Arc<Self>, other: &Arc<Self>) -> bool {
        Arc::ptr_eq(self, other)
    }

    pub(super) fn shutdown(&self) {
        self.0.shutdown();
    }
}

impl ServerStream for Leg {
    fn stream(&self) -> &Stream {
        &self.0
    }
}

/// An order to suspend; tells its number when it is dropped, carried out or not.
pub(super) struct Order {
    pub(super) number: u64,
    pub(super) told: Sender<u64>,
}

impl Ticket for Order {
    type Permit = ();

    fn try_start(&self) -> Option<()> {
        Some(())
    }

    fn may_start(&self) -> bool {
        true
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        let _ = self.told.send(self.number);
    }
}

pub(super) type ReadySession = Ready<Leg, Order>;
pub(super) type Suspended = Suspension<Leg, Order>;

/// How each direction ended, as the processors tell it.
type Exits = (
    Sender<(Direction, ProcessorExit)>,
    Receiver<(Direction, ProcessorExit)>,
);

/// The session and what a test holds of it.
pub(super) struct Rig {
    /// The application's end.
    pub(super) client: TcpStream,
    /// The SQL nodes' ends, in the order of `legs`.
    pub(super) servers: Vec<TcpStream>,
    pub(super) legs: Vec<Arc<Leg>>,
    pub(super) forwarder: Arc<Forwarder<Leg, Order>>,
    /// What a processor found ready to be carried out.
    pub(super) ready: Receiver<ReadySession>,
    pub(super) start: Sender<ReadySession>,
    ended: Exits,
    near_client: Arc<Stream>,
    ends: Mutex<Option<Ends>>,
}

/// What an application or a SQL node speaks over.
pub(super) trait End: Read + Write + Send {}

impl<T: Read + Write + Send> End for T {}

/// The client's and the servers'.
type Ends = (Box<dyn End>, Vec<Box<dyn End>>);

impl Rig {
    /// A session on the first of so many servers; its processors have not begun.
    pub(super) fn new(servers: usize) -> Self {
        let deadline = ReadDeadline::new().unwrap();
        Self::over(servers, &deadline, |_| {
            let (near, far) = connected();
            let near = Socket::new(near, Arc::clone(&deadline)).unwrap();
            let end = Box::new(far.try_clone().unwrap());
            (Arc::new(Stream::Plain(near)), far, end)
        })
    }

    /// The same with TLS on all legs.
    pub(super) fn tls(servers: usize) -> Self {
        let deadline = ReadDeadline::new().unwrap();
        Self::over(servers, &deadline, |leg| {
            let (near, end) = connect((leg, SslVersion::TLS1_3), &deadline, |tcp| tcp);
            let far = end.get_ref().try_clone().unwrap();
            (near, far, Box::new(end))
        })
    }

    fn over(
        servers: usize,
        deadline: &Arc<ReadDeadline>,
        proxied: impl Fn(peer::Leg) -> (Arc<Stream>, TcpStream, Box<dyn End>),
    ) -> Self {
        let (near_client, client, client_end) = proxied(peer::Leg::Client);
        let (mut legs, mut server_ends) = (Vec::new(), Vec::new());
        let servers: Vec<_> = (0..servers)
            .map(|_| {
                let (near, far, end) = proxied(peer::Leg::Server);
                legs.push(Arc::new(Leg(near)));
                server_ends.push(end);
                far
            })
            .collect();
        for end in servers.iter().chain([&client]) {
            end.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let interrupt = Arc::clone(deadline) as Arc<dyn Interrupt>;
        let (start, ready) = unbounded();
        Self {
            client,
            servers,
            forwarder: Forwarder::new(Exchange::new(), Arc::clone(&legs[0]), interrupt),
            legs,
            ready,
            start,
            ended: unbounded(),
            near_client,
            ends: Mutex::new(Some((client_end, server_ends))),
        }
    }

    /// The client's end and the servers', to speak over them; once.
    pub(super) fn take_ends(&self) -> Ends {
        self.ends.lock().unwrap().take().expect("taken once")
    }

    /// Starts both processors, as a session does.
    pub(super) fn run(&self) {
        let start = self.start.clone();
        let context = Arc::new(Context {
            client: Arc::clone(&self.near_client),
            forwarder: Arc::clone(&self.forwarder),
            parameters: Arc::default(),
            client_process_id: None,
            server_lost: Arc::new(|_| false),
            server_leaving: Arc::new(|| {}),
            start_transfer: Arc::new(move |ready| {
                let _ = start.send(ready);
            }),
        });
        for direction in [Direction::Request, Direction::Response] {
            let context = Arc::clone(&context);
            let ended = self.ended.0.clone();
            thread::spawn(move || {
                let end = match direction {
                    Direction::Request => run_requests(&context, Vec::new(), None),
                    Direction::Response => run_responses(&context, Vec::new()).0,
                };
                context.forwarder.exited(direction);
                let _ = ended.send((direction, end));
            });
        }
    }

    /// Gives order `number`; `told` hears when it is done with, and whoever
    /// listens to `ready` carries it out.
    pub(super) fn order(&self, number: u64, told: &Sender<u64>) {
        let told = told.clone();
        let order = self
            .forwarder
            .order_move(Order { number, told }, Instant::now());
        // One that was replaced, or came too late, says so as it is dropped.
        if let Ok(Ordered {
            ready: Some(ready), ..
        }) = order
        {
            self.start.send(ready).unwrap();
        }
    }

    /// Closes the session as its owner does.
    pub(super) fn close(&self) {
        drop(self.forwarder.close(Closing::Ended));
        self.forwarder.server().stream().shutdown();
        self.near_client.socket().read_deadline().close();
    }

    /// Waits for the end of both processors' threads.
    pub(super) fn expect_ends(&self, case: &str) {
        for _ in 0..2 {
            if let Err(error) = self.ended.1.recv_timeout(PATIENCE) {
                panic!("{case}: a processor does not end: {error}");
            }
        }
    }
}
