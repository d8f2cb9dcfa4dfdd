//! A CockroachDB that knows no revival tokens, as every self-hosted cluster: the proxy
//! logs in itself.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use postgres::Config;
use sqlpod::Auth;

use crate::support::pods::Pods;
use crate::support::proxy::{CONTROL, Outcome, Proxy, Setup};

fn pods(auth: Auth) -> Pods {
    Pods::start_with(2, |mut config| {
        config.tokens = false;
        config
            .auth(auth)
            .user("maria", "sesame")
            .user("olga", "secret")
    })
}

fn connect(proxy: &Proxy, user: &str, password: &str) -> postgres::Client {
    let mut config: Config = proxy.connection_string(user).parse().unwrap();
    config.password(password).connect(postgres::NoTls).unwrap()
}

#[test]
fn sessions_move_where_the_proxy_is_let_in() {
    let pods = pods(Auth::Trust);
    let proxy = Setup::new(&pods.addresses())
        .section("[login]\nmethod = \"trust\"")
        .start();
    let mut client = connect(&proxy, "maria", "");
    // Nor is it an obstacle what tokens are not given for.
    let mut root = connect(&proxy, "root", "");
    client
        .batch_execute("SET application_name = 'still me'")
        .unwrap();
    let statement = client.prepare("SELECT $1::text").unwrap();
    for _ in 0..5 {
        let before = pod_of(&mut client);
        proxy.migrate().assert_all_moved(2);
        assert_ne!(pod_of(&mut client), before);
        let row = client.query_one(&statement, &[&"prepared"]).unwrap();
        assert_eq!(row.get::<_, String>(0), "prepared");
        let name = client.query_one("SHOW application_name", &[]).unwrap();
        assert_eq!(name.get::<_, String>(0), "still me");
    }
    pod_of(&mut root);
    // A transaction is waited for, as ever.
    client.batch_execute("BEGIN").unwrap();
    let position = proxy.log().position();
    proxy.signal(rustix::process::Signal::USR1);
    proxy.wait_log(position, |line| line.is("transfer finished"));
    client.batch_execute("COMMIT").unwrap();
    proxy.wait_round(position).assert_all_moved(2);
}

fn pod_of(client: &mut postgres::Client) -> String {
    client
        .query_one("SELECT sqlpod_name()", &[])
        .unwrap()
        .get(0)
}

#[test]
fn sessions_move_by_the_passwords_that_the_proxy_has() {
    for auth in [Auth::Password, Auth::ScramSha256] {
        let pods = pods(auth);
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("passwords");
        fs::write(&file, "*:*:*:maria:sesame\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let login = format!(
            "[login]\nmethod = \"passfile\"\nfile = \"{}\"",
            file.display()
        );
        let proxy = Setup::new(&pods.addresses()).section(&login).start();
        let mut maria = connect(&proxy, "maria", "sesame");
        let before = pod_of(&mut maria);
        proxy.migrate().assert_all_moved(1);
        assert_ne!(pod_of(&mut maria), before);
        // Whose password is not in it stays where she is, and hears nothing of it.
        let mut olga = connect(&proxy, "olga", "secret");
        let home = pod_of(&mut olga);
        let round = proxy.migrate();
        assert_eq!((round.success, round.recoverable), (1, 1));
        let stayed = round
            .transfers
            .iter()
            .find(|it| it.outcome == Outcome::Recoverable);
        let reason = stayed.unwrap().reason();
        assert!(
            reason.contains("none that the file of [login] has for it"),
            "{reason}"
        );
        assert_eq!(pod_of(&mut olga), home);
    }
}

#[test]
fn a_restart_is_a_pause_there_too() {
    let mut pods = pods(Auth::Trust);
    let proxy = Setup::new(&pods.addresses()[..1])
        .top(CONTROL)
        // No token's life bounds it.
        .section("[login]\nmethod = \"trust\"\n[migration]\nhold = \"30m\"")
        .start();
    let mut client = proxy.login("maria");
    client.rows("SET application_name = 'still me'");
    let (code, text) = proxy.ask(&["hold", "pod-0", "--wait", "30s"]);
    assert_eq!(code, 0, "{text}");
    pods.kill("pod-0");
    pods.restart("pod-0");
    assert_eq!(client.value("SHOW application_name"), "still me");
}
