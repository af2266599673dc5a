-------------------------------- MODULE State --------------------------------
(* What the counting ledger's model consists of: constants, variables, and    *)
(* the arithmetic of pools. Owns no action. Rules are those of the            *)
(* architecture's section 3; README.md says which action is which function.   *)
(*                                                                            *)
(* A session is <<frontend, epoch>>, a block <<frontend, epoch, pool>>, a     *)
(* worker incarnation <<host, number>>; a start, a run and an END are         *)
(* <<invocation, block, worker incarnation>>.                                 *)
EXTENDS Naturals, FiniteSets, Sequences, TLC
CONSTANTS
  NONE,
  F,       \* frontends
  E,       \* epochs of a frontend: 1..E; E + 1 means gone for good
  H, HIN,  \* hosts; those whose first incarnation is a member from the start
  NI,      \* incarnations of a host
  P,       \* pools: "U" account A's unreserved rest, "R" function g's reservation, "P" g's provisioned concurrency,
           \* "V" account B's unreserved rest
  I, IG, IB,  \* invocation ids; those of function g; those of account B (the rest: other functions of A)
  CONF,    \* sequence of limits, see C; each change goes to the next
  RP,      \* the pool whose refusals are modelled
  BMAX,    \* most permits of one grant
  AU, T, G, TMAX,  \* start authority, timeout + grace, error of a clock over one of these spans, horizon (ticks)
  NLC,     \* most changes of leader, where they are counted
  NR,      \* most recall rounds
  NB,      \* most breaks of a stream, where messages are lost
  FEAT,    \* features that are on: a configuration each
  MUT      \* clauses that are taken away
On(x) == x \in FEAT
M(x) == x \in MUT
S == F \X (1..E)
B == F \X (1..E) \X P
W == H \X (1..NI)
VARIABLES
  ep, held, inv, ans,              \* frontends: epoch, permits held, own view of invocations, workers' word on its way
  msg, dn, gv, old, endm, rep, cuts, \* network: starts; grants down; give-backs not applied yet; copies of applied ones;
                                   \* ENDs not known to be applied; reports; streams broken: how often, and whose are down
  wst, wf, run, acc, bg, bar,      \* workers: state, fence table, what runs, was accepted, has begun, is barred
  size, sst, need, cnt, mem,       \* ledger (durable): blocks, sessions, whose report is missing, what is counted, members
  ackd, arun,                      \* leader (volatile): who reported, and what
  now, auth, ren, rans, last, stopped, lc,  \* clocks, authority, renewals and answers on their way, stopped agents
  gen, view, ret, gack,            \* limits: generation, seen by frontend, answered to the caller, acknowledged
  rnd, rq, ra,                     \* recall round (volatile), recalls and answers on their way
  bad                              \* what a step did wrong
fv == <<ep, held, inv, ans>>
nv == <<msg, dn, gv, old, endm, rep, cuts>>
wv == <<wst, wf, run, acc, bg, bar>>
lv == <<size, sst, need, cnt, mem>>
vv == <<ackd, arun>>
cv == <<now, auth, ren, rans, last, stopped, lc>>
pv == <<gen, view, ret, gack>>
rv == <<rnd, rq, ra>>
vars == <<fv, nv, wv, lv, vv, cv, pv, rv, bad>>

Min(a, b) == IF a < b THEN a ELSE b
Max(a, b) == IF a > b THEN a ELSE b
Minus(a, b) == IF a > b THEN a - b ELSE 0
Sum(g, X) == LET RECURSIVE A(_) A(x) == IF x = {} THEN 0 ELSE LET y == CHOOSE z \in x : TRUE IN g[y] + A(x \ {y}) IN A(X)
Fr(b) == b[1]
Ses(b) == <<b[1], b[2]>>
BP(p) == {b \in B : b[3] = p}
BS(s) == {b \in B : Ses(b) = s}
Live(b) == sst[Ses(b)] = "live"
Draining(b) == sst[Ses(b)] = "drain"
Counted(b) == sst[Ses(b)] = "count"
Out(b) == {i \in I : inv[i].s = "out" /\ inv[i].b = b}
\* permits that a frontend takes for used (mutant: not while the start is still on its way)
Used(b) == IF M("coldfree") THEN {i \in Out(b) : \E t \in run : t[1] = i} ELSE Out(b)
Idle(b) == Minus(held[b], Cardinality(Used(b)))

\* ------------------------------------------------------------ limits and pools (rules 1 and 9)
\* u, r, p, v: limits of the pools; g: where invocations of g may be admitted
C(u, r, p, v, g) == [U |-> u, R |-> r, P |-> p, V |-> v, g |-> g]
ConfOne == <<C(1, 0, 0, 0, {"U"})>>
ConfTwo == <<C(2, 0, 0, 0, {"U"})>>
ConfReserved == <<C(1, 1, 0, 0, {"R"})>>
ConfLower == <<C(2, 0, 0, 0, {"U"}), C(1, 0, 0, 0, {"U"})>>
ConfDip == <<C(2, 0, 0, 0, {"U"}), C(1, 0, 0, 0, {"U"}), C(2, 0, 0, 0, {"U"})>>
ConfCarve == <<C(2, 0, 0, 0, {"U"}), C(1, 1, 0, 0, {"R"})>>
ConfCarveRoom == <<C(3, 0, 0, 0, {"U"}), C(2, 1, 0, 0, {"R"})>>
ConfZero == <<C(2, 0, 0, 0, {"U"}), C(2, 0, 0, 0, {"R"})>>
ConfUncarve == <<C(1, 1, 0, 0, {"R"}), C(2, 0, 0, 0, {"U"})>>
ConfProvide == <<C(1, 2, 0, 0, {"R"}), C(1, 1, 1, 0, {"P", "R"})>>
ConfProvideRest == <<C(2, 0, 0, 0, {"U"}), C(1, 0, 1, 0, {"P", "U"})>>
ConfUnprovide == <<C(1, 0, 1, 0, {"P", "U"}), C(2, 0, 0, 0, {"U"})>>
ConfTwoAccounts == <<C(1, 0, 0, 1, {"U"})>>
ConfCarveBeside == <<C(2, 0, 0, 1, {"U"}), C(1, 1, 0, 1, {"R"})>>
Lim(p) == CONF[gen][p]
Acct(p) == IF p = "V" THEN "B" ELSE "A"
PoolsOf(a) == {p \in P : Acct(p) = a}
AcctLimIn(k, a) == IF a = "B" THEN CONF[k].V ELSE CONF[k].U + CONF[k].R + CONF[k].P
AcctLim(a) == AcctLimIn(gen, a)
AcctMost(a) == CHOOSE n \in 0..9 : (\E k \in 1..Len(CONF) : AcctLimIn(k, a) = n) /\ \A k \in 1..Len(CONF) : AcctLimIn(k, a) <= n
\* where an invocation may be admitted under generation k
Pools(i, k) == IF i \in IG THEN CONF[k].g ELSE IF i \in IB THEN {"V"} ELSE {"U"}
\* the pool of g that isn't provisioned, and whether p is one of g's two under its reservation
Home(k) == IF "R" \in CONF[k].g THEN "R" ELSE "U"
OfReservation(p) == p \in {"R", "P"} /\ Home(gen) = "R"
Granted(p) == Sum(size, BP(p))
\* runs of g begun in the other pool, charged to g's pool as well: until its holder acknowledged, the whole block
CrossOf(b) == IF sst[Ses(b)] = "no" THEN 0
  ELSE IF Counted(b) THEN (IF M("fencednoxcharge") THEN 0 ELSE Cardinality({x \in cnt[Ses(b)] : x[2] = b /\ x[1] \in IG}))
  ELSE IF Draining(b) THEN (IF M("fencednoxcharge") THEN 0 ELSE size[b])
  ELSE IF Fr(b) \in gack THEN Cardinality(Out(b) \cap IG)
  ELSE IF M("chargeatack") THEN 0 ELSE size[b]
Others(p) == {b \in B : b[3] \in {"U", "R"} \ {p}}
Cross(p) == IF gen = 1 \/ p # Home(gen) \/ p = "V" \/ M("oldonly") THEN 0
  ELSE Sum([b \in B |-> CrossOf(b)], Others(p))
\* mutant: a run that moved to the new pool is no longer charged to the old one
Moved(p) == IF ~M("newonly") \/ p = Home(gen) THEN 0
  ELSE Sum([b \in B |-> IF Fr(b) \in gack THEN Cardinality(Out(b) \cap IG) ELSE 0], {b \in BP(p) : Live(b)})
Charge(p) == Minus(Granted(p), Moved(p)) + Cross(p)
GrantedOf(ps) == Sum([p \in P |-> Granted(p)], ps)
InAccount(p) == IF M("noacct") THEN 9
  ELSE IF M("lentlimit") THEN Minus(AcctLim("A") + AcctLim("B"), GrantedOf(P))
  ELSE Minus(AcctLim(Acct(p)), GrantedOf(PoolsOf(Acct(p))))
InReservation(p) == IF ~OfReservation(p) \/ M("nogroup") THEN 9
  ELSE Minus(Lim("R") + Lim("P"), GrantedOf(P \cap {"R", "P"}) + Cross("R"))
InPool(p) == IF M("overgrant") THEN 9 ELSE Minus(Lim(p), Charge(p))
Free(p) == Min(InPool(p), Min(InAccount(p), InReservation(p)))
\* charged, and not known to run for it: no proof that the pool is full
Precaution(p) == ~M("precautionasused") /\
  \/ Charge(p) < Lim(p)
  \/ Cross(p) > 0 /\ \E b \in Others(p) : size[b] > 0 /\ (Draining(b) \/ (Live(b) /\ Fr(b) \notin gack))

\* ------------------------------------------------------------ the truth, which nobody has, for properties
Running(p) == {t \in run : t[2][3] = p}
RunsOf(i) == {t \in run : t[1] = i}
RunsAs(i) == (CHOOSE t \in RunsOf(i) : TRUE)[2][3]
InUse(p, k) == Sum([b \in B |->  \* by the pools of generation k
    LET mine(i) == b[3] = p \/ (i \in IG /\ p = Home(k) /\ b[3] \in {"U", "R"})
    IN IF Live(b) THEN Cardinality({i \in Out(b) : mine(i)})
       ELSE IF Counted(b) THEN Min(size[b], Cardinality({x \in cnt[Ses(b)] : x[2] = b /\ mine(x[1])}))
       ELSE IF Draining(b) THEN Cardinality({t \in run \cup msg \cup endm : t[2] = b /\ mine(t[1])}) ELSE 0], B)
\* what runs or holds a permit of a live block, and counts for p
TruthUse(p) ==
  LET X == {i \in I : (inv[i].s = "out" /\ Live(inv[i].b)) \/ RunsOf(i) # {}}
      pool(i) == IF inv[i].s = "out" THEN inv[i].b[3] ELSE RunsAs(i)
  IN Cardinality({i \in X : pool(i) = p \/ (i \in IG /\ p = Home(gen) /\ pool(i) \in {"U", "R"})})

\* ------------------------------------------------------------ the beginning
Fresh == [s |-> "new", f |-> NONE, b |-> NONE, w |-> NONE, n |-> 0, v |-> 0, late |-> FALSE, r |-> 0, no |-> "-", hb |-> 0]
Done(x) == [Fresh EXCEPT !.s = x]
In0(w) == w[2] = 1 /\ w[1] \in HIN
Init ==
  /\ ep = [f \in F |-> 1] /\ held = [b \in B |-> 0] /\ inv = [i \in I |-> Fresh] /\ ans = [i \in I |-> "-"]
  /\ msg = {} /\ dn = [b \in B |-> <<>>] /\ gv = [b \in B |-> 0] /\ old = {} /\ endm = {} /\ rep = {} /\ cuts = [n |-> 0, down |-> {}]
  /\ wst = [w \in W |-> IF In0(w) THEN "up" ELSE "off"] /\ wf = [w \in W |-> {}]
  /\ run = {} /\ acc = {} /\ bg = {} /\ bar = {}
  /\ size = [b \in B |-> 0] /\ sst = [s \in S |-> "no"] /\ need = [s \in S |-> {}] /\ cnt = [s \in S |-> {}]
  /\ mem = [w \in W |-> IF In0(w) THEN "in" ELSE "no"]
  /\ ackd = [s \in S |-> {}] /\ arun = [s \in S |-> {}]
  /\ now = 0 /\ auth = [w \in W |-> IF In0(w) THEN AU ELSE 0] /\ ren = [w \in W |-> NONE] /\ rans = [w \in W |-> NONE]
  /\ last = [w \in W |-> 0] /\ stopped = [w \in W |-> FALSE] /\ lc = 0
  /\ gen = 1 /\ view = [f \in F |-> 1] /\ ret = 1 /\ gack = F
  /\ rnd = [n |-> 0, open |-> FALSE, wait |-> {}, found |-> FALSE] /\ rq = {} /\ ra = {}
  /\ bad = "-"
==============================================================================
