/*
 * Lease, tick, revocation and receipt (DESIGN §3, PROTOCOL 1 to 9), for spin 6.5 or later.
 *
 * Two issuers, two agents, one log, one revocation, one check under way, a bus that delays, drops, repeats and
 * reorders, restarts of agents and of the issuer that revokes, time as a counter. The assertion is promise 1: once the
 * receipt says confirmed, no check accepts the token. ./check runs this file as it stands, which must pass, and once
 * for each rule taken away (-DMUTATE_...), which must fail.
 *
 * Nothing that was sent is taken out of the network again, so it arrives late, twice, out of order or never. Steps that
 * can be delayed to no harm are one step here; "The bus" in README.md says which, and why nothing is lost by it.
 *
 * Mutations by PROTOCOL's rule: 1 LEASE_FROM_RECEIPT LEASE_BEFORE_TICK ACK_BEFORE_VISIBLE ACK_BEFORE_FLOOR NO_FLOOR_ON_RESTART
 * KEPT_BEFORE_TICK; 2 STATE_FIRST RECHECK_CURRENT NO_RECHECK; 3 RUNS_BY_NAME; 4 OWN_GRANTS_ONLY GRANTS_AFTER_TICK
 * RECEIPT_BEFORE_READ FENCE_FROM_PUBLISH; 5 RESTART_FORGETS_GRANTS RESTART_FENCE_BY_TIMESTAMP REMOVED_FORGOTTEN;
 * 6 OPEN_NONCE_LIST RETRY_NEW_LIST UNKNOWN_FATE FOREIGN_TICK NONCE_REUSED; 7 FENCE_LENGTH_OWN AGENT_LENGTH_OWN
 * BLANKET_SHORT SERVE_FENCED SERVE_AT_ONCE SERVE_WITHOUT_FILE; 9 CACHE_HOLDS_STATE.
 */

#ifndef N
#define N 4			/* entries that the log may grow to: ticks, and one revocation; 3 or 4 */
#endif
#ifndef T
#define T 3			/* the last moment */
#endif
#ifndef RESTARTS
#define RESTARTS 2		/* of agents, altogether */
#endif

/* Agents want leases of different lengths (PROTOCOL 7): 0 one of two moments, 1 one of a single moment. */
#define LONGEST 2
#define LENGTH(a) (2 - (a))

/* Two settings take apart what is one step otherwise: -DFINE_TICKS a tick published, durable, acknowledged; -DFINE_READS
 * the revoking issuer reading one entry after another, and acknowledgements on their way to it. */

#define AT(s, a) (2 * (s) + (a))	/* row of an entry, column of an agent */

byte now;

/* The log. An entry is a tick or, at rev, the revocation. */
byte head;			/* the newest sequence */
byte rev;			/* where the revocation stands, 0: it does not yet */
bit granted[AT(N + 1, 0)];	/* the tick at s grants the agent's run a lease; kept for ticks before rev only */

/* The issuer that revokes: its account of who may vouch (Go: lease.Ledger). */
byte seen[N + 1];		/* when it read the tick at s, if that grants anything */
byte blanket;			/* 1 + when it started from a checkpoint: every run counts as granted then; 0: it did not */
bit restarted;
bit confirmed;
bit heard;			/* and of the agent that checks it was by an acknowledgement */

#ifdef FINE_TICKS
byte tick[2];			/* an issuer's: 0 none, 1 published, 2 durable at made[i] and its acknowledgement on its way */
byte made[2];
byte list[4];			/* by issuer and agent: 0 not in it, 1 with the nonce that is outstanding, 2 with an older one */
#endif
#ifdef FINE_READS
byte read;			/* the revoking issuer has read the log and its grants up to here */
bit acked[2];			/* the acknowledgement has reached it */
#define HEARD(a) acked[a]
#define READ (read >= rev)
#else
#define HEARD(a) ack[a]
#define READ true
#endif

/* Agents (Go: lease.Holder). */
byte applied[2];		/* what the verify path sees */
byte asked[2];			/* 1 + m0 of the outstanding request, 0: none */
bit answer[AT(N + 1, 0)];	/* an answer {the nonce outstanding, s} is in the network */
byte begun[2];			/* 1 + m0 of the lease held, 0: none. It is in the lease file, and so are the next two */
byte from[2];			/* the s of that lease */
bit floor[2];			/* the floor is rev, the only one that matters here */
bit ack[2];			/* the acknowledgement of rev has left */
byte restarts = RESTARTS;

/* One check: 0 none, 1 lease taken, 2 state looked at and the token found good. */
byte check;
bit by;				/* the agent that checks, chosen at the start */
byte taken;			/* 1 + m0 of the lease that it took */
bit late;			/* it began after the receipt */

/* What only a mutation needs. */
#if defined(MUTATE_FOREIGN_TICK) || defined(MUTATE_OPEN_NONCE_LIST) || defined(MUTATE_OWN_GRANTS_ONLY) || defined(MUTATE_RECEIPT_BEFORE_READ)
#define OWNERS
byte owner[N + 1];		/* 1 + the issuer of the tick at s */
#endif
#ifdef MUTATE_FENCE_FROM_PUBLISH
byte published;			/* 1 + when the revocation was sent */
#endif
#ifdef MUTATE_CACHE_HOLDS_STATE
bit cached[2];
#endif
#if defined(MUTATE_AGENT_LENGTH_OWN) || defined(MUTATE_SERVE_AT_ONCE)
#define RECONFIGURES
bit reconfigured;		/* an agent has restarted with another configuration */
#endif
#ifdef MUTATE_REMOVED_FORGOTTEN
bit removed;			/* agent 0 was */
#endif

/*
 * When an agent may vouch. A lease, kept over a restart or not, counts from applied >= max(its s, floor) (PROTOCOL 1),
 * and until m0 + length; with on_stale = "serve" it has no end (PROTOCOL 7).
 */
#if defined(MUTATE_NO_FLOOR_ON_RESTART)
#define AT_FLOOR(a) true
#else
#define AT_FLOOR(a) (!floor[a] || applied[a] >= rev)
#endif
#if defined(MUTATE_KEPT_BEFORE_TICK) || defined(MUTATE_LEASE_BEFORE_TICK)
#define AT_TICK(a) true
#else
#define AT_TICK(a) (applied[a] >= from[a])
#endif
#define IN_FORCE(a) (begun[a] && AT_TICK(a) && AT_FLOOR(a))

#ifdef MUTATE_AGENT_LENGTH_OWN
#define HELD(a) (reconfigured -> LONGEST : LENGTH(a))
#else
#define HELD(a) LENGTH(a)
#endif
#if defined(SERVE)
#define SERVES(a) ((a) == 0)
#elif defined(MUTATE_SERVE_AT_ONCE)
#define SERVES(a) ((a) == 0 && reconfigured)
#else
#define SERVES(a) false
#endif
#define LIVE(a, m) (SERVES(a) || now + 1 - (m) < HELD(a))
#ifdef MUTATE_LEASE_FROM_RECEIPT
#define STILL_ASKED(a) true
#else
#define STILL_ASKED(a) LIVE(a, asked[a])
#endif

/*
 * When the receipt is done with an agent (PROTOCOL 4, 5, 7): it has acknowledged, or each lease granted to it by a tick
 * before rev has certainly ended, and so has one that began when the issuer started from a checkpoint. An agent that
 * serves on is done only by its acknowledgement.
 */
#ifdef MUTATE_FENCE_LENGTH_OWN
#define FENCE(a) 1
#else
#define FENCE(a) LENGTH(a)
#endif
#ifdef MUTATE_BLANKET_SHORT
#define BLANKET 1
#else
#define BLANKET LONGEST
#endif
#if defined(SERVE) && !defined(MUTATE_SERVE_FENCED)
#define ENDS(a) ((a) != 0)
#else
#define ENDS(a) true
#endif
#if defined(MUTATE_FENCE_FROM_PUBLISH)
#define OVER(s, a) (!granted[AT(s, a)] || now + 1 - published >= LONGEST)
#elif defined(MUTATE_RECEIPT_BEFORE_READ) && defined(FINE_READS)
#define OVER(s, a) (!granted[AT(s, a)] || (s) > read || now - seen[s] >= FENCE(a))
#elif defined(MUTATE_RECEIPT_BEFORE_READ) || defined(MUTATE_OWN_GRANTS_ONLY)
#define OVER(s, a) (!granted[AT(s, a)] || owner[s] == 2 || now - seen[s] >= FENCE(a))
#elif defined(MUTATE_GRANTS_AFTER_TICK)
#define OVER(s, a) true
#else
#define OVER(s, a) (!granted[AT(s, a)] || (ENDS(a) && now - seen[s] >= FENCE(a)))
#endif
#define BLANKET_OVER(a) (!blanket || (ENDS(a) && now + 1 - blanket >= BLANKET))
#if N > 3
#define FENCED(a) (OVER(1, a) && OVER(2, a) && OVER(3, a) && OVER(4, a) && BLANKET_OVER(a))
#else
#define FENCED(a) (OVER(1, a) && OVER(2, a) && OVER(3, a) && BLANKET_OVER(a))
#endif
#if defined(MUTATE_RUNS_BY_NAME)		/* the two are processes under one name */
#define SETTLED(a) (HEARD(0) || HEARD(1) || FENCED(a))
#elif defined(MUTATE_REMOVED_FORGOTTEN)
#define SETTLED(a) ((a == 0 && removed) || HEARD(a) || FENCED(a))
#else
#define SETTLED(a) (HEARD(a) || FENCED(a))
#endif

/* When the issuer read a tick that grants nothing more does not matter. */
#define TIDY(s) seen[s] = (granted[AT(s, 0)] || granted[AT(s, 1)] -> seen[s] : 0)

/* The nonce of agent a is outstanding no more: answers to it are refused (PROTOCOL 6). */
inline forget_nonce(a) {
#ifndef MUTATE_NONCE_REUSED
	answer[AT(1, a)] = 0; answer[AT(2, a)] = 0; answer[AT(3, a)] = 0;
#if N > 3
	answer[AT(4, a)] = 0;
#endif
#ifdef FINE_TICKS
	list[a] = (list[a] -> 2 : 0);
	list[2 + a] = (list[2 + a] -> 2 : 0);
#endif
#endif
	asked[a] = 0
}

/* The run of agent a is no more and vouches for nothing: the account may forget it. That it does so at once is more
 * than an issuer can know; it makes receipts come earlier, never later. */
inline forget_run(a) {
	granted[AT(1, a)] = 0; granted[AT(2, a)] = 0; granted[AT(3, a)] = 0;
#if N > 3
	granted[AT(4, a)] = 0; TIDY(4);
#endif
	TIDY(1); TIDY(2); TIDY(3)
}

/* A lease that has ended is as good as none, and so is the answer that would begin one. */
inline expire(a) {
	if
	:: begun[a] && !LIVE(a, begun[a]) -> begun[a] = 0; from[a] = 0
	:: else
	fi;
	if
	:: asked[a] && !STILL_ASKED(a) -> forget_nonce(a)
	:: else
	fi
}

proctype Clock() {
end:	do
	:: d_step { now < T -> now++; expire(by) }
	od
}

/*
 * An issuer appends a tick with the list of the requests that have reached it, closed before it is published, and
 * answers them when it is acknowledged; of the log's places one is the revocation's. Empty lists change nothing.
 */
#ifdef OWNERS
#define OWN owner[head] = i + 1
#else
#define OWN skip
#endif
#ifdef MUTATE_REMOVED_FORGOTTEN
#define ENROLLED(a) (a != 0 || !removed)
#else
#define ENROLLED(a) true
#endif
#define ASKED(a) (a != by || asked[a])
#define TICK(zero, one) \
	d_step { head + !rev < N && (!(zero) || (ASKED(0) && ENROLLED(0))) && (!(one) || (ASKED(1) && ENROLLED(1))) -> \
		head++; OWN; \
		answer[AT(head, by)] = (by -> one : zero); \
		if \
		:: !rev -> granted[AT(head, 0)] = zero; granted[AT(head, 1)] = one; seen[head] = now \
		:: else \
		fi }

#ifdef FINE_TICKS
#define PUBLISH(zero, one) \
	d_step { tick[i] == 0 && head + !rev < N && (!(zero) || (ASKED(0) && ENROLLED(0))) && (!(one) || (ASKED(1) && ENROLLED(1))) -> \
		tick[i] = 1; list[2 * i] = zero; list[2 * i + 1] = one }
#endif

/* Answers that PROTOCOL 6 forbids: with a tick of its own published before the request came (s too small), with one of
 * another issuer, with one whose fate is unknown (it is not there at all), with one that was retried with another list. */
#define ANSWER(s, allowed) \
	d_step { asked[by] && s <= head && s != rev && allowed && !answer[AT(s, by)] -> answer[AT(s, by)] = 1 }
#define RETRIED \
	d_step { head + !rev < N && asked[by] -> \
		head++; \
		answer[AT(head, by)] = 1; \
		if \
		:: !rev -> granted[AT(head, 1 - by)] = 1; seen[head] = now \
		:: else \
		fi }

proctype Issuer(bit i) {
end:	do
#ifdef FINE_TICKS
	:: PUBLISH(1, 0)
	:: PUBLISH(0, 1)
	:: PUBLISH(1, 1)

	:: d_step { tick[i] == 1 && head + !rev < N ->
		head++; tick[i] = 2; made[i] = head; OWN;
		if
		:: !rev -> granted[AT(head, 0)] = (list[2 * i] > 0); granted[AT(head, 1)] = (list[2 * i + 1] > 0); seen[head] = now; TIDY(head)
		:: else
		fi }
#ifdef MUTATE_OPEN_NONCE_LIST
	:: d_step { tick[i] == 2 && asked[by] && list[2 * i + by] != 1 -> list[2 * i + by] = 1 }
#endif

	/* Lost, or its acknowledgement is, or the issuer restarts: its fate is unknown, and nobody is answered. */
	:: d_step { tick[i] > 0 -> tick[i] = 0; made[i] = 0; list[2 * i] = 0; list[2 * i + 1] = 0 }

	:: d_step { tick[i] == 2 ->
		if
		:: list[2 * i + by] == 1 -> answer[AT(made[i], by)] = 1
		:: else
		fi;
		tick[i] = 0; made[i] = 0; list[2 * i] = 0; list[2 * i + 1] = 0 }
#else
	:: TICK(1, 0)
	:: TICK(0, 1)
	:: TICK(1, 1)
#endif
#if defined(MUTATE_OPEN_NONCE_LIST) && !defined(FINE_TICKS)
	:: ANSWER(1, owner[1] == i + 1)
#endif
#ifdef MUTATE_FOREIGN_TICK
	:: ANSWER(1, owner[1] == 2 - i)
#endif
#ifdef MUTATE_UNKNOWN_FATE
	:: ANSWER(head, head > 0)
#endif
#ifdef MUTATE_RETRY_NEW_LIST
	:: RETRIED
#endif
	od
}

/* The issuer that revokes starts again: from the log's beginning, reading all grants now; or from a checkpoint at its
 * head, every run counting as granted now (PROTOCOL 5). */
#if defined(MUTATE_RESTART_FORGETS_GRANTS)
#define AGAIN(s) skip
#define GRANTED_NOW 0
#elif defined(MUTATE_RESTART_FENCE_BY_TIMESTAMP)	/* by what the tick says, on another machine's clock */
#define AGAIN(s) seen[s] = 0
#define GRANTED_NOW (now + 1)
#else
#define AGAIN(s) seen[s] = (seen[s] || granted[AT(s, 0)] || granted[AT(s, 1)] -> now : 0)
#define GRANTED_NOW (now + 1)
#endif

proctype Revoker() {
end:	do
#ifdef MUTATE_FENCE_FROM_PUBLISH
	:: d_step { !published -> published = now + 1 }
	:: d_step { published && !rev -> head++; rev = head }
#else
	:: d_step { !rev -> head++; rev = head }
#endif

#ifdef FINE_READS
	:: d_step { !confirmed && read < head && (!rev || read < rev) -> read++;
		seen[read] = (granted[AT(read, 0)] || granted[AT(read, 1)] -> now : 0) }
	:: d_step { !confirmed && ack[0] && !acked[0] -> acked[0] = 1 }
	:: d_step { !confirmed && ack[1] && !acked[1] -> acked[1] = 1 }
#endif

	:: d_step { !confirmed && !restarted -> restarted = 1;
#ifdef FINE_READS
		acked[0] = 0; acked[1] = 0; read = 0;
#endif
		AGAIN(1); AGAIN(2); AGAIN(3);
#if N > 3
		AGAIN(4)
#endif
	   }
	:: d_step { !confirmed && !restarted && head -> restarted = 1;
#ifdef FINE_READS
		acked[0] = 0; acked[1] = 0; read = head;
#endif
		blanket = GRANTED_NOW; forget_run(0); forget_run(1) }

	/* The receipt. From here on the account is closed. */
#ifdef MUTATE_RECEIPT_BEFORE_READ
	:: d_step { !confirmed && rev && SETTLED(0) && SETTLED(1) ->
#else
	:: d_step { !confirmed && rev && READ && SETTLED(0) && SETTLED(1) ->
#endif
		confirmed = 1; heard = HEARD(by); blanket = 0; restarted = 1;
#ifdef FINE_READS
		read = 0; acked[0] = 0; acked[1] = 0;
#endif
		forget_run(0); forget_run(1) }
#ifdef MUTATE_REMOVED_FORGOTTEN
	:: d_step { !removed -> removed = 1 }
#endif
	od
}

/* An answer is taken when its tick is applied; the lease began when it was asked for. */
#ifdef MUTATE_LEASE_FROM_RECEIPT
#define BEGIN (now + 1)
#else
#define BEGIN asked[a]
#endif
#ifdef MUTATE_LEASE_BEFORE_TICK
#define TAKES(s) true
#else
#define TAKES(s) (applied[a] >= s)
#endif
#define TAKE(s) \
	d_step { asked[a] && answer[AT(s, a)] && TAKES(s) && AT_FLOOR(a) -> \
		begun[a] = BEGIN; from[a] = s; forget_nonce(a); expire(a) }

proctype Agent(bit a) {
end:	do
	:: d_step { applied[a] < head -> applied[a]++ }

	:: d_step { asked[a] != now + 1 -> forget_nonce(a); asked[a] = now + 1 }
	:: TAKE(1)
	:: TAKE(2)
	:: TAKE(3)
#if N > 3
	:: TAKE(4)
#endif

	/* Visible to the verify path, then written as the floor, then acknowledged (PROTOCOL 1). */
#if defined(MUTATE_ACK_BEFORE_FLOOR)
	:: d_step { rev && applied[a] >= rev && !ack[a] -> ack[a] = 1 }
	:: d_step { ack[a] && !floor[a] && applied[a] >= rev -> floor[a] = 1 }
#elif defined(MUTATE_ACK_BEFORE_VISIBLE)
	:: d_step { rev && applied[a] == rev - 1 && !ack[a] -> ack[a] = 1 }
#elif defined(DRAIN)
	:: d_step { rev && applied[a] >= rev && !ack[a] && check != 2 -> floor[a] = 1; ack[a] = 1 }
#else
	:: d_step { rev && applied[a] >= rev && !ack[a] -> floor[a] = 1; ack[a] = 1 }
#endif

	/* It restarts with its lease file and with none of the log: the same run. A check under way dies. */
	:: d_step { restarts && begun[a] -> restarts--;
		applied[a] = 0; forget_nonce(a);
#ifdef MUTATE_KEPT_BEFORE_TICK
		from[a] = 0;
#endif
#ifdef RECONFIGURES
		reconfigured = 1;
#endif
#ifdef MUTATE_SERVE_WITHOUT_FILE
		floor[a] = 0; from[a] = 0;
#endif
		check = 0; taken = 0; late = 0 }

	/* It restarts without a lease, or the machine does: a new run, without floor. */
	:: d_step { restarts -> restarts--;
		applied[a] = 0; forget_nonce(a); begun[a] = 0; from[a] = 0; floor[a] = 0; ack[a] = 0; forget_run(a);
#ifdef FINE_READS
		acked[a] = 0;
#endif
#ifdef FINE_TICKS
		list[a] = 0; list[2 + a] = 0;
#endif
		check = 0; taken = 0; late = 0 }
	od
}

/* Of the other agent, which no check watches, only what an issuer hears of it: requests, at any time (see ASKED), and
 * acknowledgements. */
proctype Other() {
end:	do
	:: d_step { rev && !ack[1 - by] -> ack[1 - by] = 1 }
	od
}

/* The order of a check: the lease, the state, that same lease again (PROTOCOL 2). The cache (PROTOCOL 9) spares it the
 * signature only. */
#define REVOKED(a) (rev && applied[a] >= rev)
#if defined(MUTATE_STATE_FIRST)
#define BEGINS !REVOKED(by) -> check = 2
#define LOOK false
#elif defined(MUTATE_RECHECK_CURRENT)
#define BEGINS true -> check = 1
#define LOOK check == 1
#else
#define BEGINS IN_FORCE(by) -> check = 1; taken = begun[by]
#define LOOK check == 1
#endif
#if defined(MUTATE_STATE_FIRST) || defined(MUTATE_RECHECK_CURRENT)
#define GOOD (IN_FORCE(by) && LIVE(by, begun[by]))
#elif defined(MUTATE_NO_RECHECK)
#define GOOD true
#else
#define GOOD LIVE(by, taken)
#endif

/*
 * Promise 1. A check that looked before its own agent acknowledged may still answer: it began before the receipt, and
 * from outside its answer cannot be told from one that was long on its way. -DSTRICT counts that as an error too; then
 * an agent has to let the checks under way end before it acknowledges (-DDRAIN).
 */
#ifdef STRICT
#define EXCUSED false
#else
#define EXCUSED (!late && heard)
#endif

proctype Check() {
end:	do
	:: d_step { check == 0 && BEGINS; late = confirmed }
	:: d_step { LOOK ->
#ifdef MUTATE_CACHE_HOLDS_STATE
		check = (REVOKED(by) && !cached[by] -> 0 : 2);
#else
		check = (REVOKED(by) -> 0 : 2);
#endif
		if
		:: check == 0 -> taken = 0; late = 0
		:: else
		fi }
	:: d_step { check == 2 ->
		assert(!(confirmed && GOOD && !EXCUSED));
#ifdef MUTATE_CACHE_HOLDS_STATE
		cached[by] = cached[by] || GOOD;
#endif
		check = 0; taken = 0; late = 0 }
	od
}

init {
	atomic {
		if
		:: by = 0
		:: by = 1
		fi;
		run Clock(); run Issuer(0); run Issuer(1); run Revoker(); run Agent(by); run Other(); run Check()
	}
}
