// SPDX-License-Identifier: MIT OR Apache-2.0
//! Directories that change between looks, on a real file system.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::source::Kind;

/// A directory, looked at whenever a test says so.
struct World {
    directory: TempDir,
    tree: Tree,
}

impl World {
    fn new(files: &[(&str, String)]) -> Self {
        let directory = TempDir::new().unwrap();
        let world = Self { tree: Tree::new(directory.path().into()), directory };
        for (name, text) in files {
            world.write(name, text);
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The events of a look, in short.
    fn scan(&mut self) -> Vec<String> {
        let events = self.tree.scan().unwrap();
        events.iter().map(brief).collect()
    }
}

fn brief(event: &Event) -> String {
    match event {
        Event::Apply(Object::Service(service)) => {
            let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.clone());
            format!("apply {} {}", service.metadata.name.as_ref().unwrap(), address.unwrap())
        }
        Event::Delete(id) => format!("delete {}", id.name),
        Event::Problem(problem) => problem.to_string(),
        other => format!("{other:?}"),
    }
}

fn web(last: u8) -> String {
    named("web", last)
}

fn named(name: &str, last: u8) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{last}}}\n---\n")
}

#[test]
fn only_manifests_are_read() {
    let mut world = World::new(&[
        ("a.yaml", named("a", 1)),
        ("b.yml", named("b", 2)),
        ("c.json", named("c", 3)),
        (".hidden.yaml", named("hidden", 4)),
        ("notes.txt", named("notes", 5)),
        ("backup.yaml~", named("backup", 6)),
    ]);
    fs::create_dir(world.path("directory.yaml")).unwrap();
    assert_eq!(world.scan(), ["apply a 10.96.0.1", "apply b 10.96.0.2", "apply c 10.96.0.3"]);
    assert!(world.scan().is_empty());
}

#[test]
fn changes_and_removals_are_followed() {
    let mut world = World::new(&[("web.yaml", web(1)), ("dns.yaml", named("dns", 10))]);
    world.scan();
    world.write("web.yaml", &web(2));
    assert_eq!(world.scan(), ["apply web 10.96.0.2"]);
    world.write("web.yaml", "# nothing left\n");
    assert_eq!(world.scan(), ["delete web"]);
    fs::remove_file(world.path("dns.yaml")).unwrap();
    assert_eq!(world.scan(), ["delete dns"]);
    world.write("dns.yaml", &named("dns", 10));
    assert_eq!(world.scan(), ["apply dns 10.96.0.10"]);
}

#[test]
fn a_renamed_file_changes_nothing() {
    let mut world = World::new(&[("web.yaml", web(1))]);
    world.scan();
    fs::rename(world.path("web.yaml"), world.path("shop.yaml")).unwrap();
    assert!(world.scan().is_empty());
    fs::remove_file(world.path("shop.yaml")).unwrap();
    assert_eq!(world.scan(), ["delete web"]);
}

#[test]
fn a_config_map_that_is_swapped_is_read_again() {
    let mut world = World::new(&[]);
    for (version, last) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(world.path(version)).unwrap();
        world.write(&format!("{version}/web.yaml"), &web(last));
    }
    symlink("..1", world.path("..data")).unwrap();
    symlink("..data/web.yaml", world.path("web.yaml")).unwrap();
    assert_eq!(world.scan(), ["apply web 10.96.0.1"]);
    symlink("..2", world.path("..data_tmp")).unwrap();
    fs::rename(world.path("..data_tmp"), world.path("..data")).unwrap();
    assert_eq!(world.scan(), ["apply web 10.96.0.2"]);
}

#[test]
fn a_broken_file_is_named_once_and_keeps_its_last_good_objects() {
    let mut world = World::new(&[("web.yaml", web(1) + &named("dns", 10))]);
    world.scan();
    world.write("web.yaml", &(named("dns", 11) + "kind: [\n"));
    let expected_end = "; mend it; until then the last good objects of this file stay in force";
    let news = world.scan();
    assert_eq!(news.len(), 2);
    assert!(news[0].starts_with("file web.yaml, line 6 (document 2): ") && news[0].ends_with(expected_end), "{news:?}");
    assert_eq!(news[1], "apply dns 10.96.0.11");
    assert!(world.scan().is_empty());

    world.write("web.yaml", &named("dns", 11));
    assert_eq!(world.scan(), ["delete web"]);
}

#[test]
fn an_unreadable_file_is_named_once_and_keeps_its_last_good_objects() {
    let mut world = World::new(&[("web.yaml", web(1))]);
    world.scan();
    fs::write(world.path("web.yaml"), b"kind: \xff\n").unwrap();
    let news = world.scan();
    assert_eq!(news.len(), 1);
    assert!(news[0].starts_with("file web.yaml: stream did not contain valid UTF-8"), "{news:?}");
    assert!(world.scan().is_empty());

    fs::remove_file(world.path("web.yaml")).unwrap();
    symlink("nowhere", world.path("web.yaml")).unwrap();
    let news = world.scan();
    assert_eq!(news.len(), 1);
    assert!(news[0].starts_with("file web.yaml: No such file"), "{news:?}");

    fs::remove_file(world.path("web.yaml")).unwrap();
    assert_eq!(world.scan(), ["delete web"]);
}

#[test]
fn until_each_file_was_whole_once_the_directory_is_incomplete() {
    let mut world = World::new(&[("a.yaml", web(1) + "kind: [\n"), ("b.yaml", "kind: [\n".into()), ("c.yaml", web(3))]);
    assert_eq!(world.scan().last().unwrap(), "Incomplete(true)");
    world.write("a.yaml", &web(1));
    assert_eq!(world.scan(), [""; 0]);
    fs::rename(world.path("b.yaml"), world.path("d.yaml")).unwrap();
    assert_eq!(world.scan().len(), 1, "another name mends nothing");
    fs::remove_file(world.path("d.yaml")).unwrap();
    assert_eq!(world.scan(), ["Incomplete(false)"]);
    world.write("a.yaml", "kind: [\n");
    assert_eq!(world.scan().len(), 1, "its last good objects are known");
}

#[test]
fn of_two_files_with_the_same_object_the_first_one_counts() {
    let mut world = World::new(&[("b.yaml", web(2))]);
    assert_eq!(world.scan(), ["apply web 10.96.0.2"]);
    world.write("a.yaml", &web(1));
    let conflict = "file b.yaml: Service default/web is defined by a.yaml already; \
                    remove it from all files but one; the one in a.yaml is in force";
    assert_eq!(world.scan(), [conflict, "apply web 10.96.0.1"]);
    world.write("b.yaml", &web(3));
    assert!(world.scan().is_empty());
    fs::remove_file(world.path("a.yaml")).unwrap();
    assert_eq!(world.scan(), ["apply web 10.96.0.3"]);
}

#[test]
fn a_directory_that_vanishes_loses_nothing() {
    let mut world = World::new(&[("web.yaml", web(1))]);
    world.scan();
    let aside = world.directory.path().with_extension("aside");
    fs::rename(world.directory.path(), &aside).unwrap();
    assert_eq!(world.tree.scan().unwrap_err().kind(), io::ErrorKind::NotFound);
    fs::rename(&aside, world.directory.path()).unwrap();
    assert!(world.scan().is_empty());
}

#[test]
fn warnings_do_not_hold_objects_back() {
    let bare = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";
    let mut world = World::new(&[("web.yaml", format!("{bare}spec: {{type: ClusterIP}}\n"))]);
    let events = world.tree.scan().unwrap();
    assert!(brief(&events[0]).contains("has no clusterIP"), "{events:?}");
    assert!(matches!(&events[1], Event::Apply(object) if object.id().kind == Kind::Service));
}

#[test]
fn a_stamp_is_trusted_only_when_it_is_old() {
    let world = World::new(&[("web.yaml", web(1))]);
    let stamp = Stamp::of(&fs::metadata(world.path("web.yaml")).unwrap());
    let now = SystemTime::now();
    assert!(!stamp.is_settled(now));
    assert!(stamp.is_settled(now + 2 * STAMP_GRAIN));
}
