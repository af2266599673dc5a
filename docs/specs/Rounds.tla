-------------------------------- MODULE Rounds -------------------------------
(* Changes of limits (rule 9), recall rounds and refusals (rule 4), changes   *)
(* of the leader (rule 10).                                                   *)
EXTENDS Members

\* ------------------------------------------------------------ limits (rule 9)
Put == /\ On("put") /\ gen < Len(CONF) /\ ret = gen /\ gen' = gen + 1
       /\ gack' = {} /\ ret' = IF M("nogen") THEN gen + 1 ELSE ret
       \* runs of g count for its new pool from here on
       /\ inv' = [i \in I |-> IF inv[i].s # "wait" THEN inv[i] ELSE [inv[i] EXCEPT !.hb = Max(@, InUse(RP, gen + 1))]]
       /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, view, rv, bad>>
\* grants made before arrive before; what is idle goes back, what is in use goes back when it ends
FrontGen(f) ==
  /\ view[f] < gen /\ (\A b \in B : Fr(b) = f => dn[b] = <<>>)
  /\ view' = [view EXCEPT ![f] = gen]
  /\ LET idle(b) == IF Fr(b) = f /\ b[2] = ep[f] THEN Idle(b) ELSE 0 IN
     /\ held' = [b \in B |-> held[b] - idle(b)]
     /\ gv' = [b \in B |-> IF On("flight") THEN gv[b] + idle(b) ELSE gv[b]]
     /\ size' = [b \in B |-> IF ~On("flight") /\ Live(b) THEN Minus(size[b], idle(b)) ELSE size[b]]
  /\ UNCHANGED <<ep, inv, ans, msg, dn, old, endm, rep, cuts, wv, sst, need, cnt, mem, vv, cv, gen, ret, gack, rv, bad>>
LedgerGack(f) == /\ view[f] = gen /\ f \notin gack /\ gack' = gack \cup {f}
                 /\ UNCHANGED <<fv, nv, wv, lv, vv, cv, gen, view, ret, rv, bad>>
\* answered when it binds: every holder acknowledged, or was fenced and counted
PutRet == /\ ret < gen /\ ret' = gen
          /\ \A b \in B : size[b] > 0 => /\ (Live(b) => Fr(b) \in gack)
                                         /\ (Draining(b) => M("putonmark"))
          /\ UNCHANGED <<fv, nv, wv, lv, vv, cv, gen, view, gack, rv, bad>>

\* ------------------------------------------------------------ 429 or 503 (rule 4)
Holders == {f \in F : \E b \in BP(RP) : Fr(b) = f /\ Live(b) /\ size[b] > 0}
\* an ask under an older generation is refused
AskRecv(i) == /\ inv[i].s = "wait" /\ inv[i].no = "-" /\ view[inv[i].f] = gen /\ RP \in Pools(i, gen)
              /\ ep[inv[i].f] <= E /\ inv[i].f \notin cuts.down /\ sst[<<inv[i].f, ep[inv[i].f]>>] \in {"no", "live"}
              /\ LET b == <<inv[i].f, ep[inv[i].f], RP>> IN
                 inv[i].r = 0 \/ (inv[i].r = GRANTED /\ dn[b] = <<>> /\ Idle(b) = 0)
              /\ inv' = [inv EXCEPT ![i].r = (IF M("oldround") /\ rnd.open THEN rnd.n ELSE rnd.n + 1)]
              /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rv, bad>>
BeginRound == /\ On("recall") /\ ~rnd.open /\ rnd.n < NR /\ Free(RP) = 0 /\ Waiters # {}
              /\ rnd' = [n |-> rnd.n + 1, open |-> TRUE, wait |-> Holders, found |-> FALSE]
              /\ rq' = rq \cup {<<rnd.n + 1, f>> : f \in IF M("recallfirst") THEN Holders ELSE Holders \ cuts.down}
              /\ UNCHANGED <<fv, nv, wv, lv, vv, cv, pv, ra, bad>>
\* grants sent before the recall come before it; own waiting requests first, the rest goes back
Recalled(m) ==
  LET f == m[2]  b == <<f, Min(ep[f], E), RP>>  x == IF ep[f] > E THEN 0 ELSE Idle(b) IN
  /\ m \in rq /\ rq' = rq \ {m} /\ (x = 0 \/ ~WaitAt(b)) /\ (M("unordered") \/ dn[b] = <<>>)
  /\ held' = [held EXCEPT ![b] = @ - x] /\ gv' = [gv EXCEPT ![b] = @ + x]
  /\ ra' = ra \cup {<<m[1], f, x > 0>>}
  /\ UNCHANGED <<ep, inv, ans, msg, dn, old, endm, rep, cuts, wv, lv, vv, cv, pv, rnd, bad>>
\* an answer counts once what its holder sent before is applied
RecallAns(a) ==
  /\ a \in ra /\ ra' = ra \ {a} /\ (M("unordered") \/ \A b \in BP(RP) : Fr(b) = a[2] => gv[b] = 0)
  /\ rnd' = IF rnd.open /\ a[1] = rnd.n THEN [rnd EXCEPT !.wait = @ \ {a[2]}, !.found = @ \/ a[3]] ELSE rnd
  /\ UNCHANGED <<fv, nv, wv, lv, vv, cv, pv, rq, bad>>
Served == {i \in I : inv[i].s = "wait" /\ inv[i].r > 0 /\ inv[i].r <= rnd.n}
\* on their way to, or idle at, a frontend where other requests than i wait for them
Promised(i) == LET X(f) == Cardinality({j \in I \ {i} : inv[j].s = "wait" /\ inv[j].f = f /\ inv[j].no = "-"})
                   coming(b) == IF dn[b] = <<>> THEN Idle(b) ELSE Minus(dn[b][Len(dn[b])].size, Cardinality(Out(b)))
               IN Sum([f \in F |-> IF ep[f] > E THEN 0 ELSE Min(X(f), coming(<<f, ep[f], RP>>))], F)
False429(i) == inv[i].hb + Promised(i) < Lim(RP)
Silent == (\E b \in BP(RP) : Draining(b) /\ size[b] > 0) /\ ~M("drainasused")
Refuse(X, how) == inv' = [i \in I |-> IF i \in X THEN [inv[i] EXCEPT !.no = how, !.r = 0] ELSE inv[i]]
NoRound(n) == [n |-> n, open |-> FALSE, wait |-> {}, found |-> FALSE]
Close == /\ rnd.open /\ rnd.wait = {}
         /\ LET no == (~rnd.found \/ M("foundignored")) /\ (Free(RP) = 0 \/ M("freeignored") \/ (M("staleclose") /\ lc > 0))
                sure == ~Silent /\ (~Precaution(RP) \/ M("freeignored") \/ M("staleclose")) IN
            /\ Refuse(IF no THEN Served ELSE {}, IF sure THEN "429" ELSE "503")
            /\ bad' = IF no /\ sure /\ \E i \in Served : False429(i) THEN "false 429" ELSE bad
         /\ rnd' = NoRound(rnd.n)
         /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rq, ra>>
\* a holder stays silent
Expire == /\ rnd.open /\ rnd.wait # {} /\ On("suspect")
          /\ Refuse(Served, IF M("silent429") THEN "429" ELSE "503")
          /\ bad' = IF M("silent429") /\ \E i \in Served : False429(i) THEN "false 429" ELSE bad
          /\ rnd' = NoRound(rnd.n)
          /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rq, ra>>
\* the refusal arrives; the frontend tries its own block once more before it passes it on. One of a pool to which the
\* request doesn't belong any more is dropped.
PassOn(i) ==
  LET f == inv[i].f IN
  /\ inv[i].s = "wait" /\ inv[i].no # "-" /\ ep[f] <= E
  /\ LET idle == Idle(<<f, ep[f], RP>>)  mine == RP \in Pools(i, view[f]) IN
     /\ (idle = 0 \/ ~mine \/ M("nolasttry"))
     /\ inv' = [inv EXCEPT ![i] = IF mine THEN Done(@.no) ELSE [@ EXCEPT !.no = "-"]]
     /\ bad' = IF mine /\ inv[i].no = "429" /\ idle > 0 THEN "429 with an idle permit of its own" ELSE bad
  /\ UNCHANGED <<ep, held, ans, nv, wv, lv, vv, cv, pv, rv>>

\* ------------------------------------------------------------ leaders (rule 10)
\* the new one has the ledger and nothing else
Leader ==
  /\ On("leader") /\ ((On("clock") \/ On("recall")) => lc < NLC) /\ lc' = IF On("clock") \/ On("recall") THEN lc + 1 ELSE lc
  /\ ackd' = [s \in S |-> {}] /\ arun' = [s \in S |-> {}]
  /\ last' = IF ~On("clock") THEN last ELSE [w \in W |-> IF mem[w] = "in" THEN (IF M("noreset") THEN 0 ELSE now) ELSE last[w]]
  /\ rnd' = IF M("staleclose") THEN rnd ELSE NoRound(IF M("reuseround") /\ rnd.open THEN rnd.n - 1 ELSE rnd.n)
  /\ inv' = [i \in I |-> IF inv[i].s = "wait" /\ ~M("staleclose") THEN [inv[i] EXCEPT !.r = 0] ELSE inv[i]]
  /\ UNCHANGED <<ep, held, ans, nv, wv, lv, now, auth, ren, rans, stopped, pv, rq, ra, bad>>
==============================================================================
