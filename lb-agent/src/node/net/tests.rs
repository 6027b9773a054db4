// SPDX-License-Identifier: MIT OR Apache-2.0
//! The net on the kernel of this machine, in network namespaces of the tests' own.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex},
};

use super::*;
use crate::node::netlink::tests::{in_new_namespace, ip, output_of_ip};

/// Ranges with their sources: `10.96.0.0/12 192.0.2.1`.
fn on(texts: &[&str]) -> Wanted {
    let range = |text: &&str| {
        let mut words = text.split(' ');
        (words.next().unwrap().parse().unwrap(), words.next().map(|source| source.parse().unwrap()))
    };
    let ranges: BTreeMap<_, _> = texts.iter().map(range).collect();
    Wanted::On { mtu: 1400, routes: Some(Arc::new(Routes { ranges, are_more: false })), hint: 0 }
}

/// A node with an address of each family.
fn node() {
    ip("link set lo up");
    ip("link add veth0 type veth peer name peer0");
    ip("link set veth0 up");
    ip("link set peer0 up");
    ip("address add 192.0.2.1/24 dev veth0");
    ip("address add fd00::1/64 dev veth0 nodad");
    ip("route add default via 192.0.2.9 dev veth0");
}

async fn look(keeper: &mut Keeper, wanted: &Wanted) -> Vec<String> {
    let look = keeper.look(wanted).await;
    assert!(look.errors.is_empty(), "{:?}", look.errors);
    look.lost.iter().map(ToString::to_string).collect()
}

/// Our table, without what differs between kinds of devices.
fn table() -> Vec<String> {
    let text = output_of_ip("route show table 83") + &output_of_ip("-6 route show table 83");
    let part = |line: &str, word: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let at = words.iter().position(|own| *own == word)?;
        Some(words[at + 1].to_owned())
    };
    let route = |line: &str| {
        let range = line.split_whitespace().next().unwrap_or_default();
        format!("{range} {} {}", part(line, "dev").unwrap_or_default(), part(line, "src").unwrap_or_default())
    };
    text.lines().map(|line| route(line).trim().to_owned()).collect()
}

fn rules() -> usize {
    let rules = output_of_ip("rule show") + &output_of_ip("-6 rule show");
    rules.lines().filter(|line| line.starts_with("96:") && line.contains("from all lookup 83")).count()
}

const BOTH: [&str; 3] = ["10.96.0.0/12 192.0.2.1", "198.51.100.7/32 192.0.2.1", "fd00:96::/108 fd00::1"];

#[test]
fn rule_44_addresses_of_services_lead_to_the_nets_device_and_nowhere_else() {
    in_new_namespace(|| async {
        node();
        let mut keeper = Keeper::default();
        for _ in 0..2 {
            assert_eq!(look(&mut keeper, &on(&BOTH)).await, [""; 0]);
            let expected =
                ["10.96.0.0/12 shunt0 192.0.2.1", "198.51.100.7 shunt0 192.0.2.1", "fd00:96::/108 shunt0 fd00::1"];
            assert_eq!((table(), rules()), (expected.map(str::to_owned).to_vec(), 2));
        }
        let way = output_of_ip("-o route get 10.96.0.1");
        assert!(way.contains("dev shunt0") && way.contains("src 192.0.2.1"), "{way}");
        assert!(output_of_ip("-o -6 route get fd00:96::5").contains("dev shunt0"));
        assert!(output_of_ip("-o route get 198.51.100.8").contains("dev veth0"), "nobody's");
        let device = output_of_ip("-d link show shunt0");
        for word in ["NOARP", "UP", "mtu 1400", "addrgenmode none"] {
            assert!(device.contains(word), "{word} in {device}");
        }
        assert!(!output_of_ip("address show dev shunt0").contains("inet"), "no address");
        for family in ["ipv4", "ipv6"] {
            let forwarding = fs::read_to_string(format!("/proc/sys/net/{family}/conf/shunt0/forwarding")).unwrap();
            assert_eq!(forwarding.trim(), "1", "{family}");
        }
    });
}

#[test]
fn routes_and_the_devices_mtu_follow_what_is_wanted() {
    in_new_namespace(|| async {
        node();
        ip("address add 192.0.2.2/24 dev veth0");
        let mut keeper = Keeper::default();
        look(&mut keeper, &Wanted::On { mtu: 1500, routes: None, hint: 0 }).await;
        assert_eq!((table(), rules()), (vec![], 0), "nobody knows yet");
        look(&mut keeper, &on(&BOTH)).await;
        // Another source, and one range in place of another.
        look(&mut keeper, &on(&["10.96.0.0/12 192.0.2.2", "fd00:97::/108"])).await;
        assert_eq!(table(), ["10.96.0.0/12 shunt0 192.0.2.2", "fd00:97::/108 shunt0"]);
        assert!(output_of_ip("link show shunt0").contains("mtu 1400"));
        // What can't be told of now stays.
        let more = Routes { ranges: [("172.30.0.0/16".parse().unwrap(), None)].into(), are_more: true };
        look(&mut keeper, &Wanted::On { mtu: 1400, routes: Some(Arc::new(more)), hint: 0 }).await;
        assert_eq!(table(), ["10.96.0.0/12 shunt0 192.0.2.2", "172.30.0.0/16 shunt0", "fd00:97::/108 shunt0"]);
        look(&mut keeper, &Wanted::Unknown).await;
        assert_eq!((table().len(), rules()), (3, 2));
    });
}

#[test]
fn whatever_of_the_net_is_taken_away_comes_back_and_is_told() {
    in_new_namespace(|| async {
        node();
        let mut keeper = Keeper::default();
        let wanted = on(&BOTH);
        look(&mut keeper, &wanted).await;
        let whole = table();
        let routes = BOTH.map(|text| format!("route {} dev shunt0 table 83", text.split(' ').next().unwrap()));
        for (command, lost) in [
            ("route del 10.96.0.0/12 table 83", vec![routes[0].clone()]),
            ("link set shunt0 down", routes.to_vec()),
            ("rule del pref 96", vec!["rule 96: from all lookup 83 (IPv4)".to_owned()]),
            ("-6 rule del pref 96", vec!["rule 96: from all lookup 83 (IPv6)".to_owned()]),
            ("link del shunt0", vec!["device shunt0".to_owned()]),
        ] {
            ip(command);
            assert_eq!(look(&mut keeper, &wanted).await, lost, "{command}");
            assert_eq!((table(), rules()), (whole.clone(), 2), "{command}");
            assert_eq!(look(&mut keeper, &wanted).await, [""; 0], "{command}");
        }
        // Another agent, which knows of no loss, does the same.
        ip("link set shunt0 mtu 9000 down");
        assert_eq!(look(&mut Keeper::default(), &wanted).await, [""; 0]);
        assert_eq!(table(), whole);
        assert!(output_of_ip("link show shunt0").contains("mtu 1400"));
    });
}

#[test]
fn a_route_that_the_kernel_refuses_keeps_no_other_from_standing() {
    in_new_namespace(|| async {
        node();
        let mut keeper = Keeper::default();
        let look = keeper.look(&on(&["10.96.0.0/12 203.0.113.1", "172.30.0.0/16 192.0.2.1"])).await;
        let texts: Vec<_> = look.errors.iter().map(|error| error.problem().to_string()).collect();
        assert!(
            texts.len() == 1 && texts[0].contains("can't add 1 routes, the first of them 10.96.0.0/12: "),
            "{texts:?}"
        );
        assert_eq!(table(), ["172.30.0.0/16 shunt0 192.0.2.1"]);
        assert!(!keeper.has_stood);
        ip("address add 203.0.113.1/24 dev veth0");
        assert!(keeper.look(&on(&["10.96.0.0/12 203.0.113.1", "172.30.0.0/16 192.0.2.1"])).await.errors.is_empty());
        assert_eq!((table().len(), rules(), keeper.has_stood), (2, 1, true));
    });
}

#[test]
fn a_device_of_that_name_that_is_somebody_elses_is_left_alone_and_told() {
    in_new_namespace(|| async {
        node();
        ip("link add shunt0 type bridge");
        let (sender, receiver) = watch::channel(on(&BOTH));
        let told = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&told);
        let following = tokio::spawn(follow(receiver, move |told| hear.lock().unwrap().push(told)));
        let heard = async |count: usize| {
            while told.lock().unwrap().len() < count {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            told.lock().unwrap().last().cloned().unwrap()
        };
        let refused = heard(1).await;
        assert!(refused.is_refused);
        let text = refused.problems[0].to_string();
        assert!(
            text.starts_with("device shunt0: is not Shunt's: it is of the kind \"bridge\"")
                && text.contains("--net off")
        );
        assert_eq!((table(), rules()), (vec![], 0));
        ip("link del shunt0");
        sender.send(Wanted::On { mtu: 1500, routes: None, hint: 1 }).unwrap();
        let count = told.lock().unwrap().len();
        assert_eq!(heard(count + 1).await, Told::default());
        assert!(output_of_ip("link show shunt0").contains("mtu 1500"));
        drop(sender);
        following.await.unwrap();
    });
}

#[test]
fn blackhole_routes_of_earlier_agents_go_once_the_device_takes_their_place() {
    in_new_namespace(|| async {
        node();
        for range in ["10.96.0.0/12", "fd00:96::/108"] {
            ip(&format!("route add blackhole {range} proto 83 metric 1073741824"));
        }
        ip("route add blackhole 203.0.113.0/24");
        let blackholes = || {
            let routes = output_of_ip("route show proto 83") + &output_of_ip("-6 route show proto 83");
            routes.lines().filter(|line| line.starts_with("blackhole")).count()
        };
        let mut keeper = Keeper::default();
        look(&mut keeper, &Wanted::On { mtu: 1500, routes: None, hint: 0 }).await;
        assert_eq!(blackholes(), 2);
        look(&mut keeper, &on(&BOTH)).await;
        assert_eq!(blackholes(), 0);
        assert!(output_of_ip("route").contains("blackhole 203.0.113.0/24"), "somebody else's stays");
    });
}

#[test]
fn what_is_no_longer_wanted_goes_as_cleanup_would_have_it_and_nothing_else() {
    in_new_namespace(|| async {
        node();
        ip("route add 203.0.113.0/24 dev veth0 table 83");
        ip("rule add from 203.0.113.0/24 lookup 83");
        look(&mut Keeper::default(), &on(&BOTH)).await;
        ip("route add blackhole 172.30.0.0/16 proto 83");
        let expected = [
            "rule 96: from all lookup 83 (IPv6)",
            "rule 96: from all lookup 83 (IPv4)",
            "route 10.96.0.0/12 dev shunt0 table 83",
            "route 198.51.100.7/32 dev shunt0 table 83",
            "route fd00:96::/108 dev shunt0 table 83",
            "device shunt0",
            "route blackhole 172.30.0.0/16",
        ];
        for dry_run in [true, false] {
            let items: Vec<_> = remove_all(dry_run).await.unwrap().iter().map(ToString::to_string).collect();
            assert_eq!(items, expected);
        }
        let is_gone =
            || table() == ["203.0.113.0/24 veth0"] && rules() == 0 && output_of_ip("link show shunt0").is_empty();
        assert!(is_gone());
        assert_eq!(remove_all(false).await.unwrap(), []);
        look(&mut Keeper::default(), &on(&BOTH)).await;
        look(&mut Keeper::default(), &Wanted::Off(None)).await;
        assert!(is_gone() && output_of_ip("rule").contains("from 203.0.113.0/24 lookup 83"));
    });
}

#[test]
fn rule_44_where_there_is_no_net_routes_drop_what_is_nobodys_and_are_put_back() {
    in_new_namespace(|| async {
        node();
        ip("route add 10.96.0.0/12 via 192.0.2.8");
        let off = |ranges: &[&str]| Wanted::Off(Some(ranges.iter().map(|range| range.parse().unwrap()).collect()));
        let blackholes = || {
            let routes = output_of_ip("route show proto 83") + &output_of_ip("-6 route show proto 83");
            let first = |line: &str| line.split(" dev ").next().unwrap().trim().to_owned();
            routes.lines().map(first).collect::<Vec<_>>()
        };
        let mut keeper = Keeper::default();
        for lost in [&[] as &[&str], &["route blackhole fd00:96::/108"]] {
            assert_eq!(look(&mut keeper, &off(&["10.96.0.0/12", "fd00:96::/108"])).await, lost);
            assert_eq!(blackholes(), ["blackhole 10.96.0.0/12 metric 1073741824", "blackhole fd00:96::/108"]);
            ip("-6 route del blackhole fd00:96::/108");
        }
        assert!(output_of_ip("-o route get 10.96.0.1").contains("192.0.2.8"), "others come first");
        look(&mut keeper, &Wanted::Off(None)).await;
        assert_eq!(blackholes().len(), 1, "nobody knows of ranges");
        look(&mut keeper, &off(&["172.30.0.0/16"])).await;
        assert_eq!(blackholes(), ["blackhole 172.30.0.0/16 metric 1073741824"]);
        look(&mut keeper, &off(&[])).await;
        assert_eq!(blackholes(), [""; 0]);
    });
}
