/* The networks that a table keeps beside its rows: runs, further columns, and vacuums that write to it at the same time.

   docs/protocol/README.md says what is modelled and how to read this; scripts/check_protocol.sh checks it.

   A network's name is the digest of its content, so that, unlike the name of a shard, it may be used again: by the next job, after
   one that was killed. Sets are bits of a number: network 1 is that of the first column, network 2 that of a further one. */

#define IN(part, whole) (((part) & ~(whole)) == 0)

byte placed;                    /* the networks that are in the table's folder */
byte last;                      /* the number of the last version */
byte named;                     /* the networks that it names */

/* What must hold at every moment: the networks that the last version names are there. */
#define check() assert(IN(named, placed))

/* staging.keep_networks: uploads a network, unless it is there. Those of others stay. */
inline keep_network(network) {
    atomic { seen = placed };
    atomic {
        if
        :: IN(network, seen)
        :: else -> placed = placed | network
        fi;
        seen = 0
    }
}

/* One commit: the file of version `base + 1` is created exclusively. */
inline commit(network) {
    atomic {
        if
        :: last == base -> last++; named = named | network; check()
        :: else
        fi
    }
}

/* building.build.build_table: rows for network 1. */
proctype Run() {
    byte base, seen;

    atomic { base = last };
    keep_network(1);
#ifdef NETWORKS                 /* F3: a run removes the networks that are not its own */
    atomic {
        if
        :: named & 2 -> skip                    /* it has them, if it started from a version that has them */
        :: else -> seen = placed & ~1
        fi
    };
    atomic { placed = placed & ~seen; seen = 0; check() };
#endif
    commit(1)
}

/* jobs.add_column.add_columns: a further column, for network 2. */
proctype Columns() {
    byte base, seen;

    atomic { base = last };
    keep_network(2);
    commit(2)
}

#ifdef VACUUM_NETWORKS
/* A vacuum that removes the networks that no version names; the version that it publishes first does not help here. */
proctype Vacuum() {
    byte base, gone;

    atomic { base = last; gone = placed & ~named };
    atomic {
        if
        :: last == base -> last++
        :: else -> gone = 0
        fi
    };
    atomic { placed = placed & ~gone; check() }
}
#endif

init {
    atomic {
        run Run(); run Run();
        run Columns(); run Columns();
#ifdef VACUUM_NETWORKS
        run Vacuum()
#endif
    }
}
