//! Clients that have connections together.
use super::*;

/// The connections that were opened.
type Opened = Arc<Mutex<Vec<std::net::TcpStream>>>;

fn counted(address: SocketAddr) -> (Opened, Connector) {
    counted_to(&Arc::new(Mutex::new(address)))
}

fn counted_to(address: &Arc<Mutex<SocketAddr>>) -> (Opened, Connector) {
    let opened = Opened::default();
    let (dialing, address) = (opened.clone(), address.clone());
    let connector = Connector::new(move || {
        let (opened, address) = (dialing.clone(), *address.lock().unwrap());
        async move {
            let stream = tokio::net::TcpStream::connect(address).await?.into_std()?;
            opened.lock().unwrap().push(stream.try_clone()?);
            tokio::net::TcpStream::from_std(stream)
        }
    });
    (opened, connector)
}

fn each_for_one<const N: usize>(names: [&'static str; N], connector: &Connector) -> [(&'static str, Applied, JoinHandle<()>); N] {
    names.map(|name| {
        let (applied, subscriptions, client) = start(options(Mode::Delta), connector.clone());
        subscriptions.subscribe(CLUSTER, [name.to_owned()]);
        (name, applied, client)
    })
}

#[tokio::test]
async fn clients_that_share_a_connection_open_one_and_another_when_it_is_lost() {
    let hub = hub(&[("a", "1"), ("b", "1"), ("c", "1")]);
    let (address, server) = serve(Fake::default(), hub.clone()).await;
    let (opened, connector) = counted(address);
    let connector = connector.shared(2);
    let clients = each_for_one(["a", "b"], &connector);
    for (name, applied, _) in &clients {
        applied.until("its own", |held| held.keys().eq([name])).await;
    }
    assert_eq!(opened.lock().unwrap().len(), 1);
    opened.lock().unwrap()[0].shutdown(std::net::Shutdown::Both).unwrap();
    for (_, applied, _) in &clients {
        applied.until_logged("Disconnected").await;
    }
    hub.publish(world(&[("a", "2"), ("b", "2"), ("c", "2")]), Types::All, Instant::now());
    for (_, applied, _) in &clients {
        applied.until("the next", |held| held.values().eq(["2"])).await;
    }
    assert_eq!(opened.lock().unwrap().len(), 2);
    let [(_, more, third)] = each_for_one(["c"], &connector);
    more.until("its own", |held| held.keys().eq(["c"])).await;
    assert_eq!(opened.lock().unwrap().len(), 3, "there are two on the other");
    clients.into_iter().for_each(|(_, _, client)| client.abort());
    third.abort();
    server.abort();
}

#[tokio::test]
async fn clients_have_more_connections_where_the_server_takes_fewer_streams_on_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (opened, connector) = counted(listener.local_addr().unwrap());
    let discovery = Discovery::new(Fake::default(), hub(&["a", "b", "c", "d", "e"].map(|name| (name, "1"))), "test", Limits::default());
    let server = Server::builder().max_concurrent_streams(2).add_service(discovery.aggregated());
    let server = tokio::spawn(async move { server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap() });
    let connector = connector.shared(64);
    let clients = each_for_one(["a", "b", "c", "d", "e"], &connector);
    for (name, applied, _) in &clients {
        applied.until("its own", |held| held.keys().eq([name])).await;
    }
    assert_eq!(opened.lock().unwrap().len(), 3);
    let are_quiet = clients.iter().all(|(_, applied, _)| applied.log.lock().unwrap().len() == 1);
    assert!(are_quiet, "none had to try again");
    clients.into_iter().for_each(|(_, _, client)| client.abort());
    server.abort();
}

#[tokio::test]
async fn a_connection_that_takes_no_new_streams_is_not_shared_any_longer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = Arc::new(Mutex::new(listener.local_addr().unwrap()));
    let (_opened, connector) = counted_to(&to);
    let connector = connector.shared(64);
    let discovery = Discovery::new(Fake::default(), hub(&[("a", "1")]), "test", Limits::default());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder().add_service(discovery.aggregated());
    let incoming = TcpListenerStream::new(listener);
    let ending = tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, async { drop(stopped.await) }).await });
    let [(_, first, one)] = each_for_one(["a"], &connector);
    first.until("its own", |held| held.len() == 1).await;
    // Streams that there are go on.
    stop.send(()).unwrap();
    let (address, server) = serve(Fake::default(), hub(&[("b", "2"), ("c", "2")])).await;
    *to.lock().unwrap() = address;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let clients = each_for_one(["b", "c"], &connector);
    for (_, applied, _) in &clients {
        applied.until("its own, elsewhere", |held| held.len() == 1).await;
        let log = applied.log.lock().unwrap().clone();
        assert_eq!(log.len(), 1, "at once: {log:?}");
    }
    assert!(!ending.is_finished() && first.log.lock().unwrap().len() == 1);
    clients.iter().for_each(|(_, _, client)| client.abort());
    [one, server].iter().for_each(JoinHandle::abort);
    ending.abort();
}

#[tokio::test]
async fn who_waits_for_a_connection_that_is_given_up_opens_one() {
    let (address, server) = serve(Fake::default(), hub(&[("b", "1"), ("c", "1")])).await;
    let dials = Arc::new(Mutex::new(0));
    let dialed = dials.clone();
    let connector = Connector::new(move || {
        let nth = {
            let mut dials = dials.lock().unwrap();
            *dials += 1;
            *dials
        };
        async move {
            if nth == 1 {
                std::future::pending::<()>().await;
            }
            tokio::net::TcpStream::connect(address).await
        }
    });
    let connector = connector.shared(64);
    let [(_, _, first)] = each_for_one(["a"], &connector);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let clients = each_for_one(["b", "c"], &connector);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(*dialed.lock().unwrap(), 1, "they wait");
    first.abort();
    for (name, applied, _) in &clients {
        applied.until("its own", |held| held.keys().eq([name])).await;
        let log = applied.log.lock().unwrap().clone();
        assert_eq!(log.len(), 1, "at once: {log:?}");
    }
    assert_eq!(*dialed.lock().unwrap(), 2, "they share it");
    clients.iter().for_each(|(_, _, client)| client.abort());
    server.abort();
}

#[tokio::test]
async fn a_server_that_says_nothing_holds_nobody_up() {
    // The system takes connections to it, on which nothing ever comes.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = Arc::new(Mutex::new(silent.local_addr().unwrap()));
    let (_opened, connector) = counted_to(&to);
    let connector = connector.shared(64);
    let (address, server) = serve(Fake::default(), hub(&[("a", "1")])).await;
    let limited = Options { connect_timeout: Duration::from_millis(500), ..options(Mode::Delta) };
    let (applied, subscriptions, client) = start(limited, connector);
    subscriptions.wildcard(CLUSTER);
    applied.until_logged("no HTTP/2 settings within the time limit").await;
    *to.lock().unwrap() = address;
    applied.until("all", |held| held.len() == 1).await;
    client.abort();
    server.abort();
}
