//! Tests against the kernel, each in a network namespace of its own. They need
//! root.

use super::expr::Base;
use super::*;
use crate::testing::in_new_namespace;

const TABLE: Table = Table {
    family: Family::Ip,
    name: "test",
};

fn made(socket: &mut Socket, rules: &[Vec<Expr>]) {
    let mut transaction = Transaction::default();
    transaction.table(TABLE, Some("a table"));
    transaction.chain(TABLE, "target", None);
    transaction.chain(TABLE, "chain", Some("a chain"));
    for rule in rules {
        transaction.append(TABLE, "chain", rule, Some("note"));
    }
    transaction.run(socket).unwrap();
}

#[test]
fn a_rule_is_read_back_as_it_was_written() {
    let mut long = interface(Meta::InputName, true, "eth0").to_vec();
    long.extend(interface(Meta::OutputName, false, "b1"));
    long.extend(address(Side::Source, "10.0.0.2".parse().unwrap()));
    long.extend(network(
        Side::Destination,
        false,
        &"10.0.0.0/24".parse().unwrap(),
    ));
    long.extend(port(6, 80));
    long.extend(related_or_established());
    long.extend(to_this_machine());
    long.extend(network(Side::Source, true, &"10.0.0.0/20".parse().unwrap()));
    long.extend([Expr::Counter, Expr::Verdict(Verdict::Jump("target".into()))]);
    let goto = vec![Expr::Verdict(Verdict::Goto("target".into()))];
    let ends = [Verdict::Accept, Verdict::Drop, Verdict::Return];
    let mut rules = vec![long, goto, vec![Expr::Counter, Expr::Masquerade]];
    rules.extend(ends.map(|verdict| vec![Expr::Verdict(verdict)]));
    in_new_namespace(|| {
        let mut socket = open().unwrap();
        // Masquerading needs a chain that only postrouting leads to.
        let mut transaction = Transaction::default();
        transaction.table(TABLE, None);
        transaction.chain(TABLE, "chain", None);
        let (kind, point) = ("nat", Point::Postrouting);
        transaction.base_chain(
            TABLE,
            "base",
            Hook {
                kind,
                point,
                priority: 100,
            },
        );
        let jump = Expr::Verdict(Verdict::Jump("chain".into()));
        transaction.append(TABLE, "base", &[jump], None);
        transaction.run(&mut socket).unwrap();
        made(&mut socket, &rules);
        let read = super::rules(&mut socket, TABLE, Some("chain")).unwrap();
        let expressions: Vec<_> = read.iter().map(|rule| rule.expressions.clone()).collect();
        assert_eq!(expressions, rules);
        assert!(
            read.iter()
                .all(|rule| rule.comment.as_deref() == Some("note"))
        );
    });
}

#[test]
fn a_refused_transaction_changes_nothing_and_names_the_step() {
    in_new_namespace(|| {
        let mut socket = open().unwrap();
        made(&mut socket, &[]);
        let mut transaction = Transaction::default();
        transaction.append(TABLE, "chain", &[Expr::Counter], None);
        transaction.delete(TABLE, "chain", 4711);
        let error = transaction.run(&mut socket).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::NOENT));
        assert!(
            error.to_string().starts_with("delete an nftables rule"),
            "{error}"
        );
        assert!(rules(&mut socket, TABLE, Some("chain")).unwrap().is_empty());
        // The same socket goes on.
        made(&mut socket, &[vec![Expr::Counter]]);
        assert_eq!(rules(&mut socket, TABLE, Some("chain")).unwrap().len(), 1);
    });
}

#[test]
fn what_is_not_there_has_no_rules() {
    in_new_namespace(|| {
        let mut socket = open().unwrap();
        assert!(rules(&mut socket, TABLE, Some("chain")).unwrap().is_empty());
        assert!(!has_table(&mut socket, TABLE).unwrap());
        made(&mut socket, &[]);
        assert!(
            rules(&mut socket, TABLE, Some("nothing"))
                .unwrap()
                .is_empty()
        );
        assert!(has_table(&mut socket, TABLE).unwrap());
    });
}

#[test]
fn prefixes_of_any_length_are_compared_by_their_bits() {
    let rule = |text: &str| network(Side::Destination, true, &text.parse().unwrap());
    let (base, value) = (Base::Network, |bytes: &[u8]| Expr::Is(true, bytes.to_vec()));
    let load = |offset, length| Expr::Payload {
        base,
        offset,
        length,
    };
    assert_eq!(rule("10.1.2.3/16"), [load(16, 2), value(&[10, 1])]);
    assert_eq!(
        rule("10.1.2.3/20"),
        [
            load(16, 4),
            Expr::Mask(vec![255, 255, 240, 0]),
            value(&[10, 1, 0, 0])
        ]
    );
    assert_eq!(rule("fd00::1/8"), [load(24, 1), value(&[0xfd])]);
    let all = [load(16, 4), Expr::Mask(vec![0; 4]), value(&[0; 4])];
    assert_eq!(rule("10.1.2.3/0"), all);
    let one = [load(16, 4), value(&[10, 1, 2, 3])];
    assert_eq!(rule("10.1.2.3/32"), one);
}

#[test]
fn many_rules_fit_one_transaction() {
    in_new_namespace(|| {
        let mut socket = open().unwrap();
        let rule: Vec<_> = port(6, 80).into_iter().chain([Expr::Counter]).collect();
        made(&mut socket, &vec![rule; 3000]);
        assert_eq!(
            rules(&mut socket, TABLE, Some("chain")).unwrap().len(),
            3000
        );
    });
}
