"""Verbs of the tracking store and the model registry: track, register, promote, rollback, audit."""

from __future__ import annotations

from equipoise.cli.common import (
    ArgumentParser,
    Group,
    Options,
    Verb,
    as_json,
    load_studies,
    load_study,
    one_study,
    say,
    say_json,
    some_studies,
)
from equipoise.core.config import Study
from equipoise.core.errors import AuditFinding, PromotionRefused
from equipoise.core.text import counted


def _track_options(parser: ArgumentParser) -> None:
    some_studies(parser)
    parser.add_argument(
        "--rehome",
        action="store_true",
        help="first make mlflow.db of a copied or moved checkout keep its files here",
    )


def track(options: Options) -> None:
    """Mirror results into MLflow; `main` does so too."""
    from equipoise.registry import tracking

    if getattr(options, "rehome", False):  # `main` tracks too, without the option
        changed = tracking.rehome(options.root)
        say(f"{tracking.address(options.root)}: {changed} addresses of files changed")
    for study in load_studies(options):
        done = tracking.track(study)
        address = tracking.address(options.root)
        say(
            f"{study.name}: {len(done.written)} results written, "
            f"{len(done.present)} already in {address}"
        )
        say(f"  {tracking.advice_to_look(study)}")


def _ui_options(parser: ArgumentParser) -> None:
    some_studies(parser)
    parser.add_argument("--port", type=int, help="to listen on (default: 5001, or any free one)")


def _ui(options: Options) -> None:
    from equipoise.registry import ui

    ui.show(load_studies(options), options.root, options.port, say)


def register(options: Options) -> None:
    """Register the winners; `main` does so too."""
    from equipoise.registry import audit, register

    for study in load_studies(options):
        name = audit.model_name(study.name)
        for version in register.register(study):
            state = "registered" if version.new else "was registered"
            renewed = "; its code is committed now, and it says so" if version.renewed else ""
            say(
                f"{version.scenario} on {version.backbone} {state} as {name} "
                f"version {version.version}{renewed}"
            )


def _register(options: Options) -> None:
    register(options)
    for study in load_studies(options):
        say(
            f"next: `equipoise promote --study {study.name}` makes the challenger the champion, "
            "if its gates pass"
        )


def _promote_options(parser: ArgumentParser) -> None:
    one_study(parser)
    parser.add_argument("--version", help="promote this version instead of the challenger")
    parser.add_argument(
        "--force", action="store_true", help="although gates fail; goes with --reason"
    )
    parser.add_argument("--reason", help="why; kept in the log")
    as_json(parser)


def _promote(options: Options) -> None:
    from equipoise.registry import promotion

    study = load_study(options)
    if options.json:
        _promote_in_json(study, options)
        return
    done = promotion.promote(study, options.version, options.force, options.reason, say)
    say(promotion.moved_text(done))
    say(f"next: `equipoise predict --model models:/{done.model}@champion IMAGES`")


def _promote_in_json(study: Study, options: Options) -> None:
    """The same with a document on stdout, after a refusal too; its sentence stays on stderr."""
    from equipoise.registry import audit, promotion

    heard: list[object] = []
    model = audit.model_name(study.name)
    try:
        done = promotion.promote(
            study, options.version, options.force, options.reason, heard.append
        )
    except PromotionRefused as refusal:
        say_json(promotion.report(model, heard, refused=str(refusal)).text())
        raise
    say_json(promotion.report(model, heard, done).text())


def _rollback_options(parser: ArgumentParser) -> None:
    one_study(parser)
    parser.add_argument("--reason", required=True, help="why; kept in the log")


def _rollback(options: Options) -> None:
    from equipoise.registry import promotion

    done = promotion.rollback(load_study(options), options.reason, say)
    say(promotion.moved_text(done))


def _audit_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "action", nargs="?", choices=("show", "verify"), default="show", help="default: show"
    )
    some_studies(parser)
    as_json(parser)


def _audit(options: Options) -> None:
    from equipoise.registry import audit, history, tracking

    store = tracking.client(options.root)
    names = [audit.model_name(study.name) for study in load_studies(options)]
    verifies = options.action == "verify"
    logs = [history.log_of(store, name, verifies) for name in names]
    if options.json:
        say_json(history.AuditReport(models=logs).text())
    else:
        for log in logs:
            say(history.whole_text(log) if verifies else history.history_text(log))
    findings = sum(len(log.findings) for log in logs)
    if findings:
        raise AuditFinding(
            f"{counted(findings, 'finding')}. docs/promotion.md says what to do about each."
        )


GROUP = Group(
    "MLflow: runs and the model registry",
    (
        Verb(
            "track",
            "mirror into MLflow every result that the store lacks",
            track,
            _track_options,
            example="equipoise track --study demo",
        ),
        Verb(
            "ui",
            "serve MLflow's page of the store on this machine, and print the link to each study",
            _ui,
            _ui_options,
            example="equipoise ui --study demo",
        ),
        Verb(
            "register",
            "make each backbone's winner a version in the model registry",
            _register,
            some_studies,
            example="equipoise register --study demo",
        ),
        Verb(
            "promote",
            "move the alias champion to the challenger, or to a version",
            _promote,
            _promote_options,
            example="equipoise promote --study demo",
        ),
        Verb(
            "rollback",
            "return the alias champion to the version before",
            _rollback,
            _rollback_options,
            example='equipoise rollback --study demo --reason "wrong labels in site B"',
        ),
        Verb(
            "audit",
            "the log of promotions and rollbacks; `audit verify` finds gaps, edits, moved aliases",
            _audit,
            _audit_options,
            example="equipoise audit verify --study demo",
        ),
    ),
)
